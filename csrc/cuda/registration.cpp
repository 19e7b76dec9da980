// The CUDA side of the operators, and the Python module `mkdext._C_cuda`, which tells what it was
// built for. The schemas stand in ../registration.cpp: `_C` must be loaded first.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "../algorithm_names.h"
#include "../dynamic_conv2d_layer.h"
#include "../texture_kernels_layer.h"
#include "launch.h"

#ifndef MKDEXT_SOURCE_HASH
#define MKDEXT_SOURCE_HASH ""
#endif

namespace mkdext::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The device of a tensor, for as long as this lives, and its current stream.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_));
  }
  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

Precision precision_of(const Tensor& tensor, const char* op) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Precision::kFloat32;
    case ScalarType::Double:
      return Precision::kFloat64;
    case ScalarType::BFloat16:
      return Precision::kBFloat16;
    case ScalarType::Half:
      return Precision::kFloat16;
    default:
      STD_TORCH_CHECK(false, op, ": dtype must be float32, float64, float16 or bfloat16");
  }
}

// What kAuto is for float32. Three products on tensor cores for one elsewhere pay if tensor cores
// multiply tf32 so much faster than other units float32: seven times and more on GPUs for data
// centres, once or twice on others, by their published rates.
Algorithm float32_algorithm(int device) {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  const bool pays = (major == 8 && minor == 0) || major == 9 || major == 10;
  return pays ? Algorithm::kTf32x3 : Algorithm::kDirect;
}

struct DynamicConv2d {
  static constexpr const char* kPlace = "on one CUDA device";

  static bool accepts(const Tensor& tensor) { return tensor.is_cuda(); }

  static void compute(const std::string& algorithm, const DynamicConvShape& shape,
                      const std::vector<layer::Product>& products) {
    const Precision precision = choose(algorithm, products[0].output);
    const int64_t taps = shape.kernel_size * shape.kernel_size;
    STD_TORCH_CHECK(std::max({shape.in_channels * taps, shape.out_channels * taps, shape.height,
                              shape.width}) < INT32_MAX / 16,
                    "dynamic_conv2d: channels, height, width or kernel too large");
    const OnDeviceOf device(products[0].output);
    std::vector<CorrelationRequest> correlations;
    for (const layer::Product& product : products) {
      if (product.primitive == Primitive::kWeightGrad) {
        compute_weight_gradient(precision, shape, product, device.stream());
        continue;
      }
      CorrelationRequest request{
          product.primitive == Primitive::kInputGrad, {}, product.output.mutable_data_ptr()};
      for (const layer::Operands& term : product.terms)
        request.terms.push_back({term.map.const_data_ptr(), term.other.const_data_ptr()});
      correlations.push_back(request);
    }
    if (!correlations.empty()) correlate(precision, shape, correlations, device.stream());
  }

 private:
  static Precision choose(const std::string& name, const Tensor& like) {
    const Precision precision = precision_of(like, "dynamic_conv2d");
    const bool single = precision == Precision::kFloat32;
    Algorithm algorithm = algorithm_from_name(name, &AlgorithmEntry::on_cuda);
    if (algorithm == Algorithm::kAuto && single)
      algorithm = float32_algorithm(like.get_device_index());
    if (algorithm != Algorithm::kTf32 && algorithm != Algorithm::kTf32x3) return precision;
    STD_TORCH_CHECK(single, "dynamic_conv2d: algorithm ", name, " needs float32");
    return algorithm == Algorithm::kTf32 ? Precision::kTf32 : Precision::kTf32x3;
  }

  static void compute_weight_gradient(Precision precision, const DynamicConvShape& shape,
                                      const layer::Product& product, void* stream) {
    const layer::Operands& operands = product.terms[0];
    const int64_t splits = weight_gradient_splits(precision, shape);
    const auto type = precision == Precision::kFloat64 ? ScalarType::Double : ScalarType::Float;
    const int64_t size = splits > 1 ? splits * product.output.numel() : 0;
    const Tensor partial = torch::stable::new_empty(product.output, {size}, type);
    weight_gradient(precision, shape, operands.map.const_data_ptr(),
                    operands.other.const_data_ptr(), partial.mutable_data_ptr(),
                    product.output.mutable_data_ptr(), stream);
  }
};

struct TextureKernels {
  static void check(const Tensor& tensor) {
    STD_TORCH_CHECK(tensor.is_cuda(), "texture_kernels: tensor must be on a CUDA device");
    precision_of(tensor, "texture_kernels");
  }

  static void forward(const TextureShape& shape, const Tensor& features, const Tensor& kernels) {
    const OnDeviceOf device(features);
    cuda::texture_kernels(precision_of(features, "texture_kernels"), shape,
                          features.const_data_ptr(), kernels.mutable_data_ptr(), device.stream());
  }

  static void transpose(const TextureShape& shape, const Tensor& kernels, const Tensor& features) {
    const OnDeviceOf device(kernels);
    cuda::texture_kernels_transpose(precision_of(kernels, "texture_kernels"), shape,
                                    kernels.const_data_ptr(), features.mutable_data_ptr(),
                                    device.stream());
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mkdext, CUDA, m) {
  m.impl("dynamic_conv2d", TORCH_BOX(&layer::dynamic_conv2d<DynamicConv2d>));
  m.impl("dynamic_conv2d_input_grad", TORCH_BOX(&layer::dynamic_conv2d_input_grad<DynamicConv2d>));
  m.impl("dynamic_conv2d_weight_grad",
         TORCH_BOX(&layer::dynamic_conv2d_weight_grad<DynamicConv2d>));
  m.impl("dynamic_conv2d_double_backward",
         TORCH_BOX(&layer::dynamic_conv2d_double_backward<DynamicConv2d>));
  m.impl("texture_kernels", TORCH_BOX(&layer::texture_kernels<TextureKernels>));
  m.impl("texture_kernels_transpose", TORCH_BOX(&layer::texture_kernels_transpose<TextureKernels>));
}

}  // namespace mkdext::cuda

PYBIND11_MODULE(_C_cuda, m) {
  m.def(
      "build_info",
      [] {
        pybind11::dict info;
        info["toolkit"] = MKDEXT_CUDA_TOOLKIT;
        info["architectures"] = MKDEXT_CUDA_ARCHITECTURES;
        info["torch_headers"] = TORCH_VERSION;
        info["source_hash"] = MKDEXT_SOURCE_HASH;
        return info;
      },
      "The CUDA toolkit, the architectures (a trailing +PTX: also newer ones), the torch headers "
      "and the hash of the sources.");
  m.def(
      "float32_algorithm",
      [](int device) {
        return std::string(mkdext::algorithm_name(mkdext::cuda::float32_algorithm(device)));
      },
      "What algorithm 'auto' of dynamic_conv2d is for float32 on a GPU.");
  m.def(
      "driver_version",
      [] {
        int version = 0;
        return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
      },
      "The newest CUDA that the driver supports, 1000 * major + 10 * minor; 0 without a driver.");
}
