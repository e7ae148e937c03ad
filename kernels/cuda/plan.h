// Host side of the launches: which blocks work on what, and what lies where in the workspace. Standard C++17 alone.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "kernels/cuda/problem.h"

namespace lit_fast::cuda {

struct Limits {
  int threads;  // of a block
  int blocks;   // that the device runs at a time
};

struct Launch {
  Problem problem;
  int blocks;
};

// Blocks for each of several pieces of work: as many as it can use, and where that is too many for the device, shares
// in proportion to the work; at least one where there is any.
//
// wanted: blocks that each can use, 0 for nothing to do. work: in any one unit, such as bytes.
inline std::vector<int> share_blocks(const std::vector<Index>& wanted, const std::vector<double>& work, int blocks) {
  double total = 0;
  Index total_wanted = 0;
  int working = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    total += work[i];
    total_wanted += wanted[i];
    working += wanted[i] > 0 ? 1 : 0;
  }
  std::vector<int> shares(wanted.size());
  const double spare = std::max(0, blocks - working);
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (wanted[i] > 0) {
      const Index share = total_wanted <= blocks ? wanted[i] : 1 + static_cast<Index>(spare * work[i] / total);
      shares[i] = static_cast<int>(std::min(wanted[i], share));
    }
  }
  return shares;
}

inline Index blocks_wanted(Index elements, Index elements_per_block) {
  return (elements + elements_per_block - 1) / elements_per_block;
}

inline Index blocks_wanted(const Section& section, int threads) {
  const int wider = std::max(bytes_of(section.student_dtype), bytes_of(section.teacher_dtype));
  return blocks_wanted(section.numel, static_cast<Index>(threads) * kBytesInFlight / wider);
}

inline Index blocks_wanted(const Rows& rows, int threads) {
  return blocks_wanted(rows.batch, rows.classes > kClassesOfAWarp ? 1 : threads / kWarp);
}

inline double bytes_moved(const Section& section) {
  return static_cast<double>(section.numel) *
         (bytes_of(section.student_dtype) * (section.grad == nullptr ? 1 : 2) + bytes_of(section.teacher_dtype));
}

inline double bytes_moved(const Rows& rows) {  // the rows are read twice, and their exponentials take as long again
  return 4.0 * static_cast<double>(rows.batch) * rows.classes *
         (bytes_of(rows.student_dtype) + bytes_of(rows.teacher_dtype));
}

// The launches of one call, each with up to kMaxSections sections; the last has the rows too.
//
// common: everything but the sections, the shares of blocks and what lies in the workspace.
inline std::vector<Launch> plan(const std::vector<Section>& sections, const Problem& common, Limits limits) {
  std::vector<Launch> launches;
  std::size_t first = 0;
  do {
    launches.push_back({common, 0});
    Problem& problem = launches.back().problem;
    problem.first_section = static_cast<int>(first);
    problem.section_count = static_cast<int>(std::min<std::size_t>(kMaxSections, sections.size() - first));
    problem.is_last = first + problem.section_count == sections.size();
    if (!problem.is_last) {
      problem.rows = {};
    }
    std::vector<Index> wanted{blocks_wanted(problem.rows, limits.threads)};
    std::vector<double> work{bytes_moved(problem.rows)};
    for (int i = 0; i < problem.section_count; ++i) {
      problem.sections[i] = sections[first + i];
      wanted.push_back(blocks_wanted(problem.sections[i], limits.threads));
      work.push_back(bytes_moved(problem.sections[i]));
    }
    const std::vector<int> shares = share_blocks(wanted, work, limits.blocks);
    problem.blocks = problem.rows.blocks = shares[0];
    for (int i = 0; i < problem.section_count; ++i) {
      problem.sections[i].first_block = problem.blocks;
      problem.blocks += shares[i + 1];
    }
    launches.back().blocks = std::max(1, problem.blocks);  // an empty grid is an error
    first += problem.section_count;
  } while (first < sections.size());
  return launches;
}

// --- the workspace: one counter per launch, which must be 0, then what is carried, then the partial sums

inline std::size_t counter_bytes(std::size_t launches) {
  return (launches * sizeof(unsigned) + alignof(Carried) - 1) / alignof(Carried) * alignof(Carried);
}

inline std::size_t workspace_bytes(const std::vector<Launch>& launches) {
  int blocks = 0;
  for (const Launch& launch : launches) {
    blocks = std::max(blocks, launch.blocks);
  }
  return counter_bytes(launches.size()) + sizeof(Carried) + 2 * sizeof(double) * static_cast<std::size_t>(blocks);
}

// workspace: workspace_bytes, aligned as a double is.
inline void use_workspace(std::vector<Launch>& launches, void* workspace) {
  unsigned* counters = static_cast<unsigned*>(workspace);
  Carried* carried = reinterpret_cast<Carried*>(static_cast<char*>(workspace) + counter_bytes(launches.size()));
  for (std::size_t i = 0; i < launches.size(); ++i) {
    launches[i].problem.counter = counters + i;
    launches[i].problem.carried = carried;
    launches[i].problem.partials = reinterpret_cast<double*>(carried + 1);  // launches follow each other
  }
}

// --- rescaling

struct RescalingLaunch {
  Rescaling rescaling;
  int blocks;
};

// The launches that multiply all `tensors` by a quotient.
inline std::vector<RescalingLaunch> plan_rescaling(const std::vector<Rescaling::Tensor>& tensors, const Quotient& by,
                                                   Limits limits) {
  std::vector<RescalingLaunch> launches;
  for (std::size_t first = 0; first < tensors.size(); first += kMaxTensors) {
    launches.push_back({});
    Rescaling& rescaling = launches.back().rescaling;
    rescaling.by = by;
    rescaling.tensor_count = static_cast<int>(std::min<std::size_t>(kMaxTensors, tensors.size() - first));
    std::vector<Index> wanted;
    std::vector<double> work;
    for (int i = 0; i < rescaling.tensor_count; ++i) {
      const Rescaling::Tensor& tensor = rescaling.tensors[i] = tensors[first + i];
      wanted.push_back(blocks_wanted(tensor.numel, static_cast<Index>(limits.threads) * 16 / bytes_of(tensor.dtype)));
      work.push_back(static_cast<double>(tensor.numel) * bytes_of(tensor.dtype));
    }
    const std::vector<int> shares = share_blocks(wanted, work, limits.blocks);
    for (int i = 0; i < rescaling.tensor_count; ++i) {
      rescaling.tensors[i].first_block = rescaling.blocks;
      rescaling.blocks += shares[i];
    }
    launches.back().blocks = std::max(1, rescaling.blocks);
  }
  return launches;
}

}  // namespace lit_fast::cuda
