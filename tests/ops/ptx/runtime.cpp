// Stands in for the CUDA runtime under host code that nvcc compiled: launches go to a callback.
//
// It has what that code calls, and no more: linking tells what is missing.
#include <cuda_runtime_api.h>

#include <cstddef>
#include <map>

namespace {

// `allowed` is what cudaFuncSetAttribute said of dynamic shared memory, -1 if nothing.
using Launch = void (*)(const char* kernel, const dim3* grid, const dim3* block,
                        void* const* arguments, size_t dynamic_shared, int allowed);

struct Configuration {
  dim3 grid, block;
  size_t dynamic_shared;
  void* stream;
};

Launch callback = nullptr;
int launch_count = 0;
Configuration configuration;

struct Kernel {
  const char* mangled_name;
  int allowed_dynamic_shared = -1;
};

// By the address of the host's function. Registered before this file's variables are there.
std::map<const void*, Kernel>& kernels() {
  static std::map<const void*, Kernel> registered;
  return registered;
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
  kernels()[function] = {name};
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

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                             size_t dynamic_shared, cudaStream_t) {
  ++launch_count;
  const Kernel& kernel = kernels().at(function);
  callback(kernel.mangled_name, &grid, &block, arguments, dynamic_shared,
           kernel.allowed_dynamic_shared);
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t dynamic_shared, cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, dynamic_shared, stream);
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize)
    kernels().at(function).allowed_dynamic_shared = value;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "no error of the CUDA runtime"; }

}  // extern "C"
