// What every launch needs: its number of blocks within the limit, and its error as an exception.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace mkdext::cuda {

inline unsigned grid_size(const char* op, int64_t blocks) {
  if (blocks > INT32_MAX)
    throw std::runtime_error(std::string(op) + ": these sizes need " + std::to_string(blocks) +
                             " blocks, but a launch has at most " + std::to_string(INT32_MAX));
  return static_cast<unsigned>(blocks);
}

// Errors of the launch itself; what goes wrong while a kernel runs shows up later, as in PyTorch.
inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return;
  std::string advice;
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInsufficientDriver ||
      error == cudaErrorUnsupportedPtxVersion)
    advice = "; `python -m mkdext.doctor` tells what was built and what this machine needs";
  throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(error) + advice);
}

}  // namespace mkdext::cuda
