// Vectors of one instruction set, and the integer arithmetic of blocking. Included through
// per_instruction_set.h before a file of kernels, hence no include guard and no includes.

namespace mkdext::cpu::MKDEXT_ISA {
namespace {

template <typename T>
struct Simd {
  typedef T Vec __attribute__((vector_size(MKDEXT_VECTOR_BYTES)));
  typedef Vec Unaligned __attribute__((aligned(sizeof(T)), may_alias));
  typedef decltype(Vec{} < Vec{}) Mask;  // integers of the same size
  static constexpr int64_t kLanes = MKDEXT_VECTOR_BYTES / sizeof(T);
};

template <typename T>
using Vec = typename Simd<T>::Vec;

template <typename T>
using Mask = typename Simd<T>::Mask;

constexpr int64_t kLineBytes = 64;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Before an inner loop that is called from large functions: inlined there it would have to share
// their registers.
#define MKDEXT_OWN_REGISTERS __attribute__((noinline))

// On what is called a few times with arrays of vectors, which a call would send through memory.
#define MKDEXT_INLINED __attribute__((always_inline))

template <typename T>
inline Vec<T> load(const T* from) {
  return *reinterpret_cast<const typename Simd<T>::Unaligned*>(from);
}

template <typename T>
inline void store(T* to, const Vec<T>& value) {
  *reinterpret_cast<typename Simd<T>::Unaligned*>(to) = value;
}

// The first `count` lanes only; the others become 0.
template <typename T>
inline void load_some(const T* from, int64_t count, Vec<T>* value) {
  if (count == Simd<T>::kLanes) {
    *value = load(from);
  } else {
    *value = Vec<T>{};
    __builtin_memcpy(value, from, count * sizeof(T));
  }
}

template <typename T>
inline void store_some(T* to, int64_t count, const Vec<T>& value) {
  if (count == Simd<T>::kLanes) {
    store(to, value);
  } else {
    __builtin_memcpy(to, &value, count * sizeof(T));
  }
}

// Returns the value in a register of its own. Without it GCC folds a load into each use, and the
// loads, not the arithmetic, set the pace. By value: a reference to an element of an array would
// keep the whole array in memory.
template <typename T>
inline Vec<T> in_register(Vec<T> value) {
#if defined(__x86_64__)
  __asm__("" : "+v"(value));
#elif defined(__aarch64__)
  __asm__("" : "+w"(value));
#endif
  return value;
}

// Tells the compiler to load a value once. Without it GCC folds the load into each use, and the
// loads, not the arithmetic, set the pace.
template <typename T>
inline void keep_in_register(Vec<T>& value) {
#if defined(__x86_64__)
  __asm__("" : "+v"(value));
#elif defined(__aarch64__)
  __asm__("" : "+w"(value));
#else
  (void)value;
#endif
}

}  // namespace
}  // namespace mkdext::cpu::MKDEXT_ISA
