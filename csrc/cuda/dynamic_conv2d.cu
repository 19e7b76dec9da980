// The kernels of dynamic_conv2d.h on a GPU, and their launches.
//
// The arithmetic stands in fma_kernels.h and tensor_core_*.h, the choice of tiles in tiles.h, which
// launches make a result in plan.h. A launch goes to the given stream of the current device;
// nothing waits, and nothing is allocated.
#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "launch.h"
#include "launch_check.h"
#include "plan.h"

namespace mkdext::cuda {
namespace {

constexpr int kAdditionThreads = 256;

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks) correlation_kernel(
    const __grid_constant__ CorrelationArguments<typename Kernel::Element> arguments) {
  __shared__ typename Kernel::Shared shared;
  typename Kernel::Registers registers;
  DeviceBlock<typename Kernel::Registers> block(registers);
  const int index = static_cast<int>(blockIdx.x);
  const bool second = index >= arguments.first_of_second;
  Kernel::run(block, shared, arguments.maps, arguments.jobs[second],
              second ? index - arguments.first_of_second : index);
}

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks) weight_gradient_kernel(
    const __grid_constant__ WeightGradientArguments<typename Kernel::Element, typename Kernel::Sum>
        arguments) {
  __shared__ typename Kernel::Shared shared;
  typename Kernel::Registers registers;
  DeviceBlock<typename Kernel::Registers> block(registers);
  Kernel::run(block, shared, arguments, static_cast<int>(blockIdx.x));
}

template <typename T, typename Sum>
__global__ void __launch_bounds__(kAdditionThreads)
    addition_kernel(WeightGradientArguments<T, Sum> arguments, int64_t size) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kAdditionThreads + threadIdx.x;
  if (at < size) add_parts(arguments, size, at);
}

class DeviceLauncher {
 public:
  explicit DeviceLauncher(void* stream) : stream_(static_cast<cudaStream_t>(stream)) {}

  template <typename Kernel>
  void correlation(const CorrelationArguments<typename Kernel::Element>& arguments,
                   int64_t blocks) {
    correlation_kernel<Kernel>
        <<<grid_size(kName, blocks), Kernel::kThreads, 0, stream_>>>(arguments);
    check_launch(kName);
  }

  template <typename Kernel>
  void weight_gradient(
      const WeightGradientArguments<typename Kernel::Element, typename Kernel::Sum>& arguments,
      int64_t blocks) {
    weight_gradient_kernel<Kernel>
        <<<grid_size(kName, blocks), Kernel::kThreads, 0, stream_>>>(arguments);
    check_launch(kName);
  }

  template <typename T, typename Sum>
  void addition(const WeightGradientArguments<T, Sum>& arguments, int64_t size) {
    const unsigned blocks = grid_size(kName, divide_up(size, kAdditionThreads));
    addition_kernel<<<blocks, kAdditionThreads, 0, stream_>>>(arguments, size);
    check_launch(kName);
  }

 private:
  static constexpr const char* kName = "dynamic_conv2d";
  cudaStream_t stream_;
};

}  // namespace

void correlate(Precision precision, const DynamicConvShape& shape,
               const std::vector<CorrelationRequest>& requests, void* stream) {
  DeviceLauncher launcher(stream);
  plan_correlations(launcher, precision, shape, requests);
}

int weight_gradient_splits(Precision precision, const DynamicConvShape& shape) {
  return plan_splits(precision, shape);
}

void weight_gradient(Precision precision, const DynamicConvShape& shape, const void* grad,
                     const void* input, void* partial, void* output, void* stream) {
  DeviceLauncher launcher(stream);
  plan_weight_gradient(launcher, precision, shape, grad, input, partial, output);
}

}  // namespace mkdext::cuda
