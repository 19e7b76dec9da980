// Working memory of one thread, aligned to a cache line.
#pragma once

#include <cstdint>
#include <new>

namespace mkdext::cpu {

// Memory that outlives its user, so that a thread need not ask the system for it at every call.
class KeptMemory {
 public:
  KeptMemory() = default;
  ~KeptMemory() { replace(nullptr, 0); }
  KeptMemory(const KeptMemory&) = delete;
  KeptMemory& operator=(const KeptMemory&) = delete;

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

  void replace(void* data, int64_t bytes) {
    ::operator delete(data_, kLine);
    data_ = data;
    bytes_ = bytes;
  }

  static constexpr std::align_val_t kLine{64};

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// A thread uses one at a time for each element type.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t elements) {
    const int64_t bytes = elements * static_cast<int64_t>(sizeof(T));
    if (bytes > kMostKept) {
      large_.replace(::operator new(bytes, KeptMemory::kLine), bytes);
      data_ = static_cast<T*>(large_.data());
      return;
    }
    thread_local KeptMemory kept;
    if (kept.bytes() < bytes) kept.replace(::operator new(bytes, KeptMemory::kLine), bytes);
    data_ = static_cast<T*>(kept.data());
  }

  T* data() { return data_; }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr int64_t kMostKept =
      -1;  // memory of the exact size, so that its ends are guarded
#else
  static constexpr int64_t kMostKept = 32 << 20;
#endif
  KeptMemory large_;
  T* data_;
};

}  // namespace mkdext::cpu
