// Every operator schema of the package, one line each, and the Python module `mkdext._C`, which
// holds no tensor functions: importing it registers the operators as torch.ops.mkdext.*.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/version.h>

#include <map>
#include <string>
#include <vector>

#include "cpu/algorithm.h"
#include "cpu/instruction_set.h"
#include "dynamic_conv2d.h"

#ifndef MKDEXT_SOURCE_HASH
#define MKDEXT_SOURCE_HASH ""
#endif

STABLE_TORCH_LIBRARY(mkdext, m) {
  m.def("dynamic_conv2d(Tensor input, Tensor weight, str algorithm='auto') -> Tensor");
  m.def("dynamic_conv2d_input_grad(Tensor grad, Tensor weight, str algorithm='auto') -> Tensor");
  m.def(
      "dynamic_conv2d_weight_grad(Tensor grad, Tensor input, int kernel_size, "
      "str algorithm='auto') -> Tensor");
  m.def(
      "dynamic_conv2d_double_backward(Tensor grad, Tensor? input, Tensor? weight, "
      "Tensor? grad_grad_input, Tensor? grad_grad_weight, bool want_grad, bool want_input, "
      "bool want_weight, str algorithm='auto') -> (Tensor, Tensor, Tensor)");
  m.def(
      "conv2d(Tensor input, Tensor weight, Tensor? bias, int upscale_factor, bool channels_last) "
      "-> Tensor");
  m.def(
      "conv2d_backward(Tensor grad, Tensor? input, Tensor? weight, bool want_bias, "
      "int upscale_factor, bool channels_last) -> (Tensor, Tensor, Tensor)");
  m.def(
      "conv2d_double_backward(Tensor grad, Tensor? input, Tensor? weight, "
      "Tensor? grad_grad_input, Tensor? grad_grad_weight, Tensor? grad_grad_bias, bool want_grad, "
      "bool want_input, bool want_weight, int upscale_factor, bool channels_last) "
      "-> (Tensor, Tensor, Tensor)");
  m.def("texture_kernels(Tensor features, int grid, int kernel_size) -> Tensor");
  m.def("texture_kernels_transpose(Tensor kernels, int grid, int height, int width) -> Tensor");
}

namespace {

namespace py = pybind11;

std::string version_of(unsigned long long packed) {
  return std::to_string(packed >> 56) + "." + std::to_string((packed >> 48) & 0xff);
}

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "g++ " __VERSION__;
#endif
  info["torch_headers"] = TORCH_VERSION;
  info["abi_target"] = version_of(TORCH_FEATURE_VERSION);
  info["source_hash"] = MKDEXT_SOURCE_HASH;
  return info;
}

std::string instruction_set() {
  return mkdext::cpu::instruction_set_name(mkdext::cpu::active_instruction_set());
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> names;
  for (const auto set : mkdext::cpu::supported_instruction_sets()) {
    names.push_back(mkdext::cpu::instruction_set_name(set));
  }
  return names;
}

// A dictionary, because Python keeps the order of its keys.
py::dict dynamic_conv2d_devices() {
  py::dict devices;
  for (const mkdext::AlgorithmEntry& entry : mkdext::kAlgorithms) {
    py::list of_one;
    if (entry.on_cpu) of_one.append("cpu");
    if (entry.on_cuda) of_one.append("cuda");
    devices[py::str(std::string(entry.name))] = of_one;
  }
  return devices;
}

std::map<std::string, std::string> dynamic_conv2d_algorithms(int64_t batch, int64_t in_channels,
                                                             int64_t out_channels, int64_t height,
                                                             int64_t width, int64_t kernel_size,
                                                             bool is_float32) {
  const mkdext::DynamicConvShape shape{batch,  in_channels, out_channels,
                                       height, width,       kernel_size};
  std::map<std::string, std::string> names;
  for (const auto primitive : mkdext::cpu::kPrimitives) {
    names.emplace(mkdext::cpu::primitive_name(primitive),
                  mkdext::algorithm_name(mkdext::cpu::choose(primitive, shape, is_float32)));
  }
  return names;
}

std::vector<std::string> dynamic_conv2d_runnable(int64_t batch, int64_t in_channels,
                                                 int64_t out_channels, int64_t height,
                                                 int64_t width, int64_t kernel_size,
                                                 bool is_float32) {
  const mkdext::DynamicConvShape shape{batch,  in_channels, out_channels,
                                       height, width,       kernel_size};
  std::vector<std::string> names;
  for (const mkdext::AlgorithmEntry& entry : mkdext::kAlgorithms) {
    if (mkdext::cpu::can_run(entry.algorithm, shape, is_float32)) names.emplace_back(entry.name);
  }
  return names;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &build_info,
        "Compiler, torch headers, the oldest torch it runs with, and the hash of the sources.");
  m.def("instruction_set", &instruction_set, "The instruction set that the CPU kernels use.");
  m.def("cpu_features", &cpu_features,
        "The instruction sets that this processor can run, smallest first.");
  m.def("dynamic_conv2d_devices", &dynamic_conv2d_devices,
        "The values of `algorithm`, each with the types of the devices that know it.");
  m.def("dynamic_conv2d_algorithms", &dynamic_conv2d_algorithms, py::arg("batch"),
        py::arg("in_channels"), py::arg("out_channels"), py::arg("height"), py::arg("width"),
        py::arg("kernel_size"), py::arg("is_float32"),
        "The algorithm that \"auto\" takes for each primitive.");
  m.def("dynamic_conv2d_runnable", &dynamic_conv2d_runnable, py::arg("batch"),
        py::arg("in_channels"), py::arg("out_channels"), py::arg("height"), py::arg("width"),
        py::arg("kernel_size"), py::arg("is_float32"),
        "The values of `algorithm` that can compute this shape, \"auto\" among them.");
}
