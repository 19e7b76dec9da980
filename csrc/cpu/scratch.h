// Working memory of one thread, aligned to a cache line.
#pragma once

#include <cstdint>
#include <new>

namespace mkdext::cpu {

template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t elements)
      : data_(static_cast<T*>(::operator new(static_cast<size_t>(elements) * sizeof(T), kLine))) {}
  ~Scratch() { ::operator delete(data_, kLine); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* data() { return data_; }

 private:
  static constexpr std::align_val_t kLine{64};
  T* data_;
};

}  // namespace mkdext::cpu
