#include "csrc/cpu/pool.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <cstdlib>
#include <deque>
#include <mutex>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lit_fast::cpu {
namespace {

constexpr size_t kLarge = 128 << 10;      // bytes: malloc reuses what is smaller
constexpr size_t kStep = 64 << 10;        // sizes are rounded up to this,
constexpr size_t kHugePage = 2 << 20;     // and from here on to this
constexpr size_t kMostKept = 512u << 20;  // bytes that wait for another use, at most

struct Memory {
  void* data;
  size_t size;
};

size_t step_of(size_t bytes) { return bytes < kHugePage ? kStep : kHugePage; }

void release(Memory memory);

// Memory that was given back, the longest unused first. Never destroyed: tensors may outlive it.
class Pool {
 public:
  void* take(size_t size) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (auto it = free_.rbegin(); it != free_.rend(); ++it) {  // the newest may still be in a cache
        if (it->size == size) {
          void* data = it->data;
          kept_ -= size;
          free_.erase(std::next(it).base());
          return data;
        }
      }
    }
    void* data = nullptr;
#if defined(__linux__)
    data = std::aligned_alloc(step_of(size), size);
    TORCH_CHECK_WITH(OutOfMemoryError, data != nullptr, "lit_loss: no memory for a gradient of ", size, " bytes");
    if (size >= kHugePage) {
      madvise(data, size, MADV_HUGEPAGE);  // a hint: it may fail
    }
#else
    data = c10::alloc_cpu(size);
#endif
    return data;
  }

  void give_back(Memory memory) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(memory);
    kept_ += memory.size;
    while (kept_ > kMostKept) {
      kept_ -= free_.front().size;
      release(free_.front());
      free_.pop_front();
    }
  }

 private:
  std::mutex mutex_;
  std::deque<Memory> free_;
  size_t kept_ = 0;
};

void release(Memory memory) {
#if defined(__linux__)
  std::free(memory.data);
#else
  c10::free_cpu(memory.data);
#endif
}

Pool& pool() {
  static Pool* pool = new Pool;
  return *pool;
}

void give_back(void* context) {
  auto* memory = static_cast<Memory*>(context);
  pool().give_back(*memory);
  delete memory;
}

class PoolAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const size_t step = step_of(bytes);
    const size_t size = (bytes + step - 1) / step * step;
    auto* memory = new Memory{pool().take(size), size};
    return {memory->data, memory, &give_back, c10::Device(c10::DeviceType::CPU)};
  }

  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

}  // namespace

at::Tensor gradient_like(const at::Tensor& tensor) {
  static PoolAllocator allocator;
  if (tensor.nbytes() < kLarge || !tensor.is_non_overlapping_and_dense()) {
    return at::empty_like(tensor);
  }
  return at::detail::empty_strided_generic(tensor.sizes(), tensor.strides(), &allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.scalar_type());
}

}  // namespace lit_fast::cpu
