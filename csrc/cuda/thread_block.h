// What a kernel asks of the block of threads that runs it.
//
// The kernels of this folder are written as phases: `block.each_thread(f)` runs f for every thread,
// `block.barrier()` ends what may be read and written without order. On a GPU a phase is the code
// of one thread and the barrier is the hardware's. Compiled without nvcc, the same source runs with
// a block that goes through its threads one by one: tests/ops/cuda_arithmetic.cpp has one.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define MKDEXT_DEVICE __device__ __forceinline__
#define MKDEXT_HOST_DEVICE __host__ __device__
#define MKDEXT_UNROLL _Pragma("unroll")
#define MKDEXT_UNROLL_A_LITTLE _Pragma("unroll 3")
#define MKDEXT_NO_UNROLL _Pragma("unroll 1")
#else
#define MKDEXT_DEVICE inline
#define MKDEXT_HOST_DEVICE
#define MKDEXT_UNROLL
#define MKDEXT_UNROLL_A_LITTLE
#define MKDEXT_NO_UNROLL
#endif

namespace mkdext::cuda {

// Four neighbours that are loaded and stored at once; their address is a multiple of their size.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T values[4];
};

template <typename T>
MKDEXT_HOST_DEVICE inline bool is_multiple_of(const void* address, T bytes) {
  return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

// The same number, from which the compiler has computed nothing yet: what one phase makes of it
// does not wait in registers for the next time.
MKDEXT_DEVICE int anew(int number) {
  asm volatile("" : "+r"(number));
  return number;
}

#if defined(__CUDACC__)

template <typename Registers>
class DeviceBlock {
 public:
  __device__ explicit DeviceBlock(Registers& registers) : registers_(registers) {}

  // Calls phase(thread, its registers).
  template <typename Phase>
  MKDEXT_DEVICE void each_thread(const Phase& phase) {
    phase(static_cast<int>(threadIdx.x), registers_);
  }

  MKDEXT_DEVICE void barrier() { __syncthreads(); }

  // Copies to shared memory, or writes zeros if not `valid`, and then does not read; there after
  // await_copies and a barrier.
  template <int kBytes>
  MKDEXT_DEVICE void copy_async(void* shared, const void* global, bool valid) {
    const auto target = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    if constexpr (kBytes == 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(global),
                   "r"(valid ? 16 : 0)
                   : "memory");
    } else {
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(target), "l"(global),
                   "n"(kBytes), "r"(valid ? kBytes : 0)
                   : "memory");
    }
  }

  MKDEXT_DEVICE void await_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

  // operands(registers) = {sum, a, b} of Type::multiply_add, which a warp computes together.
  template <typename Type, typename Operands>
  MKDEXT_DEVICE void multiply_add(const Operands& operands) {
    const auto [sum, a, b] = operands(registers_);
    Type::multiply_add(sum, a, b);
  }

 private:
  Registers& registers_;
};

#endif  // __CUDACC__

// The registers that one thread brings to a matrix product of its warp.
struct Fragments {
  float* sum;         // 4
  const uint32_t* a;  // 4 of each part
  const uint32_t* b;  // 2 of each part
};

}  // namespace mkdext::cuda
