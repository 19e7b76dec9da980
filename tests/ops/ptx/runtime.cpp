// Stands in for the CUDA runtime under host code that nvcc compiled: launches go to a callback.
//
// It has what that code calls, and no more: linking tells what is missing.
#include <cuda_runtime_api.h>

#include <cstddef>
#include <map>

namespace {

using Launch = void (*)(const char* kernel, const dim3* grid, const dim3* block,
                        void* const* arguments, size_t dynamic_shared);

struct Configuration {
  dim3 grid, block;
  size_t dynamic_shared;
  void* stream;
};

Launch callback = nullptr;
int launch_count = 0;
Configuration configuration;

// The mangled names by the address of the host's function.
std::map<const void*, const char*>& kernels() {
  static std::map<const void*, const char*> names;
  return names;
}

}  // namespace

extern "C" {

void set_launch(Launch launch) { callback = launch; }
int launches() { return launch_count; }

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  kernels()[function] = name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t dynamic_shared, void* stream) {
  configuration = {grid, block, dynamic_shared, stream};
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* dynamic_shared,
                                       void* stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *dynamic_shared = configuration.dynamic_shared;
  *static_cast<void**>(stream) = configuration.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t dynamic_shared, cudaStream_t) {
  ++launch_count;
  callback(kernels().at(kernel), &grid, &block, arguments, dynamic_shared);
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "no error of the CUDA runtime"; }

}  // extern "C"
