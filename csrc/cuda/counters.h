// Which of a device's counters of finished blocks (kernels/cuda/lit_loss.cuh) a call takes. Standard C++17 alone.
//
// A launch leaves its counter at 0. So launches that follow each other can share one, as those of a stream do; launches
// that may run at the same time must not. A captured launch runs on whatever stream its graph is replayed on, at any
// time: it keeps a counter to itself, which is enough, since replays of a graph follow each other as well.
#pragma once

#include <map>
#include <mutex>
#include <utility>

#include "kernels/cuda/problem.h"

namespace lit_fast::cuda {

// There are more counters than a program has streams and captured calls; where they do run out, the oldest is handed
// out once more. It is then in use twice only if, of two streams with 1,023 others between them, or of two graphs with
// 15,359 captured calls between them, both are still there and compute a loss at the same moment.
class Counters {
 public:
  // id: as cudaStreamGetId gives it, never the same for two streams.
  int of_stream(int device, unsigned long long id) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Stream stream{device, id};
    const auto known = of_streams_.find(stream);
    if (known != of_streams_.end()) {
      return known->second;
    }
    const int counter = static_cast<int>(streams_++ % kStreamCounters);
    of_streams_.erase(owners_[counter]);
    owners_[counter] = stream;
    of_streams_[stream] = counter;
    return counter;
  }

  int of_capture() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return kStreamCounters + static_cast<int>(captures_++ % (kCounters - kStreamCounters));
  }

 private:
  using Stream = std::pair<int, unsigned long long>;  // device and id

  std::mutex mutex_;
  std::map<Stream, int> of_streams_;
  Stream owners_[kStreamCounters] = {};
  unsigned streams_ = 0, captures_ = 0;
};

}  // namespace lit_fast::cuda
