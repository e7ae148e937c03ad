// Runs CUDA kernels' own source on the CPU: include this file before a .cuh file, then call cuda_on_cpu::launch.
//
// Two ways: every CUDA thread a fiber, taking turns within one thread of the system for each block (fast; for plain
// runs and AddressSanitizer), or, with CUDA_ON_CPU_THREADS, a thread of its own (for ThreadSanitizer). Blocks run one
// after another or all at once. Not covered: memory order weaker than the CPU's, code that relies on a warp's lockstep
// without a barrier, alignment of vector loads (but by UndefinedBehaviorSanitizer), speed.
#pragma once

#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#if !defined(CUDA_ON_CPU_THREADS)
#include <ucontext.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#endif

#define LIT_CUDA_ON_CPU
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

constexpr unsigned kWarp = 32;
constexpr std::size_t kSharedBytes = 48 * 1024;

struct Trap : std::runtime_error {
  Trap() : std::runtime_error("__trap") {}
};

// What the threads of a block have in common.
struct Block {
  struct Warp {
    alignas(8) unsigned char values[kWarp][8];
  };
  std::vector<Warp> warps;
  // Not initialised, like the device's: a pattern that is NaN in every type.
  std::unique_ptr<unsigned char[]> shared{new unsigned char[kSharedBytes]};

  explicit Block(unsigned threads) : warps(threads / kWarp) { std::memset(shared.get(), 0xff, kSharedBytes); }
};

inline thread_local Block* block;

template <typename T>
T& shared() {
  static_assert(sizeof(T) <= kSharedBytes && alignof(T) <= 16, "shared memory");
  return *reinterpret_cast<T*>(block->shared.get());
}

using Body = std::function<void()>;

#if defined(CUDA_ON_CPU_THREADS)

inline thread_local std::barrier<>*block_barrier, *warp_barrier;

inline void wait_for_block() { block_barrier->arrive_and_wait(); }
inline void wait_for_warp() { warp_barrier->arrive_and_wait(); }
[[noreturn]] inline void trap() { std::_Exit(3); }  // the others wait at a barrier

inline void run_block(const Body& body, unsigned number, unsigned blocks, unsigned threads) {
  Block of_all(threads);
  std::barrier<> all(threads);
  std::vector<std::unique_ptr<std::barrier<>>> warps;
  for (unsigned i = 0; i < threads / kWarp; ++i) {
    warps.push_back(std::make_unique<std::barrier<>>(kWarp));
  }
  std::vector<std::thread> running;
  for (unsigned i = 0; i < threads; ++i) {
    running.emplace_back([&, i] {
      block = &of_all;
      block_barrier = &all;
      warp_barrier = warps[i / kWarp].get();
      threadIdx = {i}, blockIdx = {number}, blockDim = {threads}, gridDim = {blocks};
      body();
    });
  }
  for (std::thread& thread : running) {
    thread.join();
  }
}

#else

constexpr std::size_t kStackBytes = 128 * 1024;

// The fibers of one block; they take turns, in order, at barriers.
struct Fibers {
  struct Barrier {
    unsigned arrived = 0, generation = 0;
  };
  std::vector<ucontext_t> contexts;
  std::vector<std::unique_ptr<char[]>> stacks;
  std::vector<bool> done;
  ucontext_t main;
  unsigned current = 0;
  Barrier all;
  std::vector<Barrier> warps;
  const Body* body = nullptr;
  bool trapped = false;
  const void* main_stack = nullptr;
  std::size_t main_stack_bytes = 0;

  explicit Fibers(unsigned threads) : contexts(threads), done(threads), warps(threads / kWarp) {
    for (unsigned i = 0; i < threads; ++i) {
      stacks.emplace_back(new char[kStackBytes]);
    }
  }
};

inline thread_local Fibers* fibers;

// Tells AddressSanitizer which stack it is about to see.
template <typename Switch>
void switch_stack([[maybe_unused]] const void* stack, [[maybe_unused]] std::size_t bytes, Switch&& change) {
#if defined(__SANITIZE_ADDRESS__)
  void* own = nullptr;
  __sanitizer_start_switch_fiber(&own, stack, bytes);
  change();
  __sanitizer_finish_switch_fiber(own, nullptr, nullptr);
#else
  change();
#endif
}

inline void yield() {
  Fibers& all = *fibers;
  switch_stack(all.main_stack, all.main_stack_bytes, [&] { swapcontext(&all.contexts[all.current], &all.main); });
  if (all.trapped) {
    throw Trap();
  }
}

inline void wait(Fibers::Barrier& barrier, unsigned expected) {
  const unsigned generation = barrier.generation;
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.generation;
  }
  while (barrier.generation == generation) {
    yield();
  }
}

inline void wait_for_block() { wait(fibers->all, blockDim.x); }
inline void wait_for_warp() { wait(fibers->warps[threadIdx.x / kWarp], kWarp); }
[[noreturn]] inline void trap() { throw Trap(); }

inline void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &fibers->main_stack, &fibers->main_stack_bytes);
#endif
  try {
    (*fibers->body)();
  } catch (const Trap&) {
    fibers->trapped = true;
  }
  fibers->done[fibers->current] = true;
  switch_stack(fibers->main_stack, fibers->main_stack_bytes,
               [] { swapcontext(&fibers->contexts[fibers->current], &fibers->main); });
}

inline void run_block(const Body& body, unsigned number, unsigned blocks, unsigned threads) {
  Block of_all(threads);
  Fibers all(threads);
  all.body = &body;
  fibers = &all;
  block = &of_all;
  blockIdx = {number}, blockDim = {threads}, gridDim = {blocks};
  for (unsigned i = 0; i < threads; ++i) {
    getcontext(&all.contexts[i]);
    all.contexts[i].uc_stack.ss_sp = all.stacks[i].get();
    all.contexts[i].uc_stack.ss_size = kStackBytes;
    all.contexts[i].uc_link = nullptr;
    makecontext(&all.contexts[i], fiber_main, 0);
  }
  for (unsigned left = threads; left > 0;) {
    left = 0;
    for (unsigned i = 0; i < threads; ++i) {
      if (!all.done[i]) {
        all.current = i;
        threadIdx = {i};
        switch_stack(all.stacks[i].get(), kStackBytes, [&] { swapcontext(&all.main, &all.contexts[i]); });
        left += all.done[i] ? 0 : 1;
      }
    }
  }
  if (all.trapped) {
    throw Trap();
  }
}

#endif

// Runs `body` as a kernel of blocks of `threads` threads. Throws Trap if it traps (with threads: ends the process).
inline void launch(unsigned blocks, unsigned threads, bool all_blocks_at_once, const Body& body) {
  std::atomic<bool> trapped = false;
  std::vector<std::thread> running;
  for (unsigned number = 0; number < blocks; ++number) {
    const auto run = [&, number] {
      try {
        run_block(body, number, blocks, threads);
      } catch (const Trap&) {
        trapped = true;
      }
    };
    if (all_blocks_at_once) {
      running.emplace_back(run);
    } else {
      run();
    }
  }
  for (std::thread& thread : running) {
    thread.join();
  }
  if (trapped) {
    throw Trap();
  }
}

// --- what the device's instructions do

template <typename To, typename From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "equal sizes");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float half_to_float(unsigned short half) {
  const unsigned exponent = half >> 10 & 31u, fraction = half & 1023u;
  const float sign = half >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) {
    return fraction != 0 ? NAN : sign * INFINITY;
  }
  return sign * (exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                               : std::ldexp(static_cast<float>(fraction + 1024), static_cast<int>(exponent) - 25));
}

// To the nearest, ties to even.
inline unsigned short float_to_half(float number) {
  const unsigned sign = bits_as<unsigned>(number) >> 16 & 0x8000u;
  const float magnitude = std::fabs(number);
  unsigned bits;
  if (std::isnan(number)) {
    bits = 0x7fffu;
  } else if (magnitude >= 65520.0f) {  // halfway from the largest number to the next that there would be
    bits = 0x7c00u;
  } else if (magnitude < 6.103515625e-05f) {  // subnormal: units of 2^-24
    bits = static_cast<unsigned>(std::nearbyint(std::ldexp(magnitude, 24)));
  } else {
    int exponent;
    const float fraction = std::frexp(magnitude, &exponent);  // in [0.5, 1); rounding up to 2048 carries
    bits =
        (static_cast<unsigned>(exponent + 13) << 10) + static_cast<unsigned>(std::nearbyint(std::ldexp(fraction, 11)));
  }
  return static_cast<unsigned short>(sign | bits);
}

}  // namespace cuda_on_cpu

#define LIT_SHARED(type, name) type& name = cuda_on_cpu::shared<type>()

inline float __uint_as_float(unsigned bits) { return cuda_on_cpu::bits_as<float>(bits); }
inline unsigned __float_as_uint(float number) { return cuda_on_cpu::bits_as<unsigned>(number); }
inline int __double2loint(double number) { return static_cast<int>(cuda_on_cpu::bits_as<std::uint64_t>(number)); }
inline int __double2hiint(double number) { return static_cast<int>(cuda_on_cpu::bits_as<std::uint64_t>(number) >> 32); }
inline double __hiloint2double(int high, int low) {
  return cuda_on_cpu::bits_as<double>(static_cast<std::uint64_t>(static_cast<unsigned>(high)) << 32 |
                                      static_cast<unsigned>(low));
}

#if defined(PLANT_RACE)  // for the test of the tools: the first barrier of every block is missing
inline thread_local bool planted = false;
inline void __syncthreads() {
  if (planted) {
    cuda_on_cpu::wait_for_block();
  }
  planted = true;
}
#else
inline void __syncthreads() { cuda_on_cpu::wait_for_block(); }
#endif

inline void __threadfence() {}  // atomicInc orders everything, as far as a CPU can
[[noreturn]] inline void __trap() { cuda_on_cpu::trap(); }

inline unsigned atomicInc(unsigned* address, unsigned limit) {
  const std::atomic_ref<unsigned> number(*address);
  unsigned old = number.load();
  while (!number.compare_exchange_weak(old, old >= limit ? 0 : old + 1)) {
  }
  return old;
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  static_assert(sizeof(T) <= 8, "one register, or two");
  if (mask != 0xffffffffu) {
    std::abort();  // part of a warp is not supported
  }
  auto& values = cuda_on_cpu::block->warps[threadIdx.x / cuda_on_cpu::kWarp].values;
  const unsigned lane = threadIdx.x % cuda_on_cpu::kWarp;
  std::memcpy(values[lane], &value, sizeof value);
  cuda_on_cpu::wait_for_warp();
  std::memcpy(&value, values[lane ^ static_cast<unsigned>(lanes)], sizeof value);
  cuda_on_cpu::wait_for_warp();
  return value;
}
