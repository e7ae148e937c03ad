// Host side of the launches: which blocks work on what, and what lies where in the workspace. Standard C++17 alone.
#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
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

// Rows of logits that a warp works on at a time; where a block shares a row, each of its warps has a part of one.
inline int rows_of_warp(const Rows& rows, int threads) {
  return std::max(1, kWarp / lanes_of_row(rows.classes, threads));
}

inline Index blocks_wanted(const Rows& rows, int threads) {
  return blocks_wanted(rows.batch, threads / lanes_of_row(rows.classes, threads));
}

// Blocks that a device runs one after the other, where rows of many classes are a block each: it is their number that
// evens out, as a block that is done makes room for the next, and no block waits for another. More would not even out
// better, and each reads all labels.
constexpr int kWavesOfRows = 4;

// Work in bytes of IRs, which a block streams with nothing to wait for in between: on an H200 one of its 660 x 4 warps
// moves 1.6 KB a microsecond. A row of logits moves next to nothing, but its loads, exponentials and sums wait for each
// other: a turn of a warp takes 8 us there, and 1 more for each further strip of classes. The costs here are over twice
// that: rows should be done in half of the time of the IRs, whole turns counted, since rows that end late keep the
// whole device waiting.
constexpr double kBytesOfRow = 36864;   // for the rows that a warp works on at a time
constexpr double kBytesOfStrip = 8192;  // for each strip of a lane, likewise

// The rows may have one in so many of the blocks, however little their work: the IRs wait for the memory, and a few
// blocks less keep as much of it busy.
constexpr int kBlocksPerBlockOfRows = 20;

inline double bytes_of_work(const Section& section) {
  return static_cast<double>(section.numel) *
         (bytes_of(section.student_dtype) * (section.grad == nullptr ? 1 : 2) + bytes_of(section.teacher_dtype));
}

inline double bytes_of_work(const Rows& rows, int threads) {
  const int lanes = lanes_of_row(rows.classes, threads);
  const double turns = static_cast<double>(blocks_wanted(rows.batch, rows_of_warp(rows, threads)));  // of warps
  const double warps = static_cast<double>(std::max(1, lanes / kWarp));                              // for one row
  return turns * warps *
         (kBytesOfRow + kBytesOfStrip * static_cast<double>(blocks_wanted(rows.classes, lanes * kStrip)));
}

// Which blocks of a launch work on the rows and which on each section.
//
// Rows that a block shares have blocks of their own, beyond those that the device runs at a time.
inline void share_launch(Problem& problem, Limits limits) {
  const Index wanted_by_rows = blocks_wanted(problem.rows, limits.threads);
  const bool rows_of_block = problem.rows.classes > kClassesOfAWarp;
  std::vector<Index> wanted{rows_of_block ? 0 : wanted_by_rows};
  std::vector<double> work{rows_of_block ? 0 : bytes_of_work(problem.rows, limits.threads)};
  for (int i = 0; i < problem.section_count; ++i) {
    wanted.push_back(blocks_wanted(problem.sections[i], limits.threads));
    work.push_back(bytes_of_work(problem.sections[i]));
  }
  work[0] = std::max(work[0], std::accumulate(work.begin(), work.end(), 0.0) / kBlocksPerBlockOfRows);
  const std::vector<int> shares = share_blocks(wanted, work, limits.blocks);
  const Index most = static_cast<Index>(kWavesOfRows) * limits.blocks;
  problem.rows.blocks = rows_of_block ? static_cast<int>(std::min(wanted_by_rows, most)) : shares[0];
  problem.blocks = problem.rows.blocks;
  for (int i = 0; i < problem.section_count; ++i) {
    problem.sections[i].first_block = problem.blocks;
    problem.blocks += shares[i + 1];
  }
}

// Which kernel computes the loss. doubles: whether any tensor is float64.
inline Kernel kernel_of(const std::vector<Section>& sections, const Rows& rows, bool doubles) {
  if (doubles) {
    return Kernel::f64;
  }
  std::vector<DType> types;
  for (const Section& section : sections) {
    types.insert(types.end(), {section.student_dtype, section.teacher_dtype});
  }
  if (rows.batch > 0) {
    types.push_back(rows.student_dtype);
    types.push_back(rows.has_teacher ? rows.teacher_dtype : rows.student_dtype);
  }
  const DType first = types.empty() ? DType::f32 : types.front();
  if (std::any_of(types.begin(), types.end(), [first](DType type) { return type != first; })) {
    return Kernel::mixed;
  }
  return first == DType::f16 ? Kernel::f16 : first == DType::bf16 ? Kernel::bf16 : Kernel::f32;
}

// What the device would have to divide for.
inline void work_out_slopes(Problem& problem) {
  for (int i = 0; i < problem.section_count; ++i) {
    Section& section = problem.sections[i];
    const double count = problem.counts == nullptr ? static_cast<double>(section.numel) : 1.0;
    section.slope = (1 - problem.beta) * section.weight / count;
  }
  Rows& rows = problem.rows;
  const double soft = problem.tau_squared ? problem.tau : 1 / problem.tau;  // tau^2 of eq. 2 times d(z / tau) / d z
  rows.inverse_tau = 1 / problem.tau;
  rows.ce_slope = problem.beta * problem.alpha;
  const double count = problem.counts == nullptr ? static_cast<double>(rows.batch) : 1.0;
  rows.kl_slope = problem.beta * (1 - problem.alpha) * soft / count;
  rows.at_all = rows.label_smoothing / rows.classes;
}

// The launches of one call, each with up to kMaxSections sections; the last has the rows too.
//
// ir_rows: of each section, or none. common: everything but the sections, the shares of blocks and what lies in the
// workspace.
inline std::vector<Launch> plan(const std::vector<Section>& sections, const std::vector<CountedRows>& ir_rows,
                                const Problem& common, Limits limits) {
  const std::size_t most = ir_rows.empty() ? kMaxSections : kMaxCountedSections;
  std::vector<Launch> launches;
  std::size_t first = 0;
  do {
    launches.push_back({common, 0});
    Problem& problem = launches.back().problem;
    problem.first_section = static_cast<int>(first);
    problem.section_count = static_cast<int>(std::min(most, sections.size() - first));
    problem.is_last = first + problem.section_count == sections.size();
    if (!problem.is_last) {
      problem.rows = {};
    }
    std::copy_n(sections.begin() + static_cast<std::ptrdiff_t>(first), problem.section_count, problem.sections);
    problem.has_ir_rows = !ir_rows.empty();
    if (problem.has_ir_rows) {
      std::copy_n(ir_rows.begin() + static_cast<std::ptrdiff_t>(first), problem.section_count, problem.counted.rows);
    }
    work_out_slopes(problem);
    share_launch(problem, limits);
    launches.back().blocks = std::max(1, problem.blocks);  // an empty grid is an error
    first += problem.section_count;
  } while (first < sections.size());
  return launches;
}

// --- the workspace: what is carried, then the partial sums

inline std::size_t workspace_bytes(const std::vector<Launch>& launches) {
  int blocks = 0;
  for (const Launch& launch : launches) {
    blocks = std::max(blocks, launch.blocks);
  }
  return sizeof(Carried) + 2 * sizeof(double) * static_cast<std::size_t>(blocks);
}

// workspace: workspace_bytes, aligned as a double is, of any content. The launches share it, and the counter, since
// they follow each other.
inline void use_workspace(std::vector<Launch>& launches, void* workspace, int counter) {
  Carried* carried = static_cast<Carried*>(workspace);
  for (Launch& launch : launches) {
    launch.problem.counter = counter;
    launch.problem.carried = carried;
    launch.problem.partials = reinterpret_cast<double*>(carried + 1);
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
