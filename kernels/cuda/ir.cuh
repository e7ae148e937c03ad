// The IR loss of one section (paper eq. 3) and its gradient, by the blocks of that section.
#pragma once

#include "kernels/cuda/numbers.cuh"

namespace lit_fast::cuda {

// How a pair of stored types is walked: `width` elements fill 16 bytes of the narrower type, and a thread loads `steps`
// such pieces of both tensors before it uses the first.
template <typename S, typename T>
struct Walk {
  static constexpr int narrower = sizeof(S) < sizeof(T) ? sizeof(S) : sizeof(T);
  static constexpr int wider = sizeof(S) < sizeof(T) ? sizeof(T) : sizeof(S);
  static constexpr int width = static_cast<int>(sizeof(Words)) / narrower;
  static constexpr int steps = kBytesInFlight / (width * wider);
  static constexpr int s_words = width * sizeof(S) / sizeof(Words);
  static constexpr int t_words = width * sizeof(T) / sizeof(Words);
};

// Which thread of a section this is, counted through all of its blocks.
struct Place {
  Index thread;
  Index threads;
};

// `steps` pieces, each a warp's width apart from the one before: writes scale * l'(d) if `grad` is not null, returns
// the sum of l(d) of at most 32 elements.
template <IrKind kind, int steps, typename S, typename T, typename C>
__device__ __forceinline__ C ir_pieces(const Words* student, const Words* teacher, Words* grad, C scale) {
  using W = Walk<S, T>;
  Words s[steps][W::s_words], t[steps][W::t_words];
#pragma unroll
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int w = 0; w < W::s_words; ++w) {
      s[step][w] = student[step * kWarp * W::s_words + w];
    }
#pragma unroll
    for (int w = 0; w < W::t_words; ++w) {
      t[step][w] = teacher[step * kWarp * W::t_words + w];
    }
  }
  C sum = C(0);
#pragma unroll
  for (int step = 0; step < steps; ++step) {
    Words slopes[W::s_words];
#pragma unroll
    for (int i = 0; i < W::width; ++i) {
      const auto element = ir_element<kind>(widen<C>(get<S>(s[step], i)) - widen<C>(get<T>(t[step], i)));
      sum += element.loss;
      S slope;
      narrow(scale * element.slope, slope);
      set(slopes, i, slope);
    }
    if (grad != nullptr) {
#pragma unroll
      for (int w = 0; w < W::s_words; ++w) {
        grad[step * kWarp * W::s_words + w] = slopes[w];
      }
    }
  }
  return sum;
}

// The thread's share of all whole pieces of a section whose tensors are aligned: a warp takes tiles of `steps` pieces
// for each of its threads; what is less than a tile is shared out piece by piece.
template <IrKind kind, typename S, typename T, typename C>
__device__ __forceinline__ double ir_aligned(const Section& section, C scale, Place place) {
  using W = Walk<S, T>;
  constexpr int tile = W::steps * kWarp;
  const Words* student = static_cast<const Words*>(section.student);
  const Words* teacher = static_cast<const Words*>(section.teacher);
  Words* grad = static_cast<Words*>(section.grad);
  const Index pieces = section.numel / W::width, in_tiles = pieces / tile * tile;
  const auto grad_at = [grad](Index piece) { return grad == nullptr ? nullptr : grad + piece * W::s_words; };
  double sum = 0;
  Index piece = place.thread / kWarp * tile + place.thread % kWarp;
  for (; piece < in_tiles; piece += place.threads * W::steps) {
    sum += ir_pieces<kind, W::steps, S, T>(student + piece * W::s_words, teacher + piece * W::t_words, grad_at(piece),
                                           scale);
  }
#pragma unroll 1
  for (piece = in_tiles + place.thread; piece < pieces; piece += place.threads) {
    sum += ir_pieces<kind, 1, S, T>(student + piece * W::s_words, teacher + piece * W::t_words, grad_at(piece), scale);
  }
  return sum;
}

// The thread's share of the elements from `begin` on, one by one. Student, Teacher: Typed or Untyped.
template <IrKind kind, typename C, typename Student, typename Teacher>
__device__ __forceinline__ double ir_single(Student student, Teacher teacher, Student grad, Index begin, Index numel,
                                            C scale, Place place) {
  double sum = 0;
#pragma unroll 1
  for (Index i = begin + place.thread; i < numel; i += place.threads) {
    const auto element = ir_element<kind>(student.template read<C>(i) - teacher.template read<C>(i));
    sum += element.loss;
    if (grad.data != nullptr) {
      grad.write(i, scale * element.slope);
    }
  }
  return sum;
}

// The same of all elements of those rows that count; the others' gradient is 0.
template <IrKind kind, typename C, typename Student, typename Teacher>
__device__ __forceinline__ double ir_single_counted(Student student, Teacher teacher, Student grad, CountedRows rows,
                                                    Index numel, C scale, Place place) {
  double sum = 0;
#pragma unroll 1
  for (Index i = place.thread; i < numel; i += place.threads) {
    C slope = C(0);
    if (rows.counted[i / rows.of_row]) {
      const auto element = ir_element<kind>(student.template read<C>(i) - teacher.template read<C>(i));
      sum += element.loss;
      slope = scale * element.slope;
    }
    if (grad.data != nullptr) {
      grad.write(i, slope);
    }
  }
  return sum;
}

// The same of tensors of one type S that are aligned, where every piece of 16 bytes is of one row.
template <IrKind kind, typename S, typename C>
__device__ __forceinline__ double ir_aligned_counted(const Section& section, CountedRows rows, C scale, Place place) {
  constexpr int width = Walk<S, S>::width;
  const Words* student = static_cast<const Words*>(section.student);
  const Words* teacher = static_cast<const Words*>(section.teacher);
  Words* grad = static_cast<Words*>(section.grad);
  const Index pieces = section.numel / width, of_row = rows.of_row / width;
  double sum = 0;
#pragma unroll 1
  for (Index piece = place.thread; piece < pieces; piece += place.threads) {
    if (rows.counted[piece / of_row]) {
      sum +=
          ir_pieces<kind, 1, S, S>(student + piece, teacher + piece, grad == nullptr ? nullptr : grad + piece, scale);
    } else if (grad != nullptr) {
      grad[piece] = Words{};
    }
  }
  return sum;
}

// The thread's share of a section of which some rows do not count. S: the type of all tensors, or Any.
template <IrKind kind, typename S, typename C>
__device__ __forceinline__ double ir_counted(const Section& section, CountedRows rows, C scale, Place place) {
  void *student = const_cast<void*>(section.student), *teacher = const_cast<void*>(section.teacher);
  if constexpr (!is_any<S>) {
    const bool aligned = is_aligned(student) && is_aligned(teacher) && is_aligned(section.grad);
    if (aligned && rows.of_row % Walk<S, S>::width == 0) {
      return ir_aligned_counted<kind, S>(section, rows, scale, place);
    }
    const auto typed = [](void* data) { return Typed<S>{static_cast<S*>(data)}; };
    return ir_single_counted<kind>(typed(student), typed(teacher), typed(section.grad), rows, section.numel, scale,
                                   place);
  } else {
    return ir_single_counted<kind>(Untyped{student, section.student_dtype}, Untyped{teacher, section.teacher_dtype},
                                   Untyped{section.grad, section.student_dtype}, rows, section.numel, scale, place);
  }
}

// The thread's share of a section of tensors of any types.
template <IrKind kind, typename C>
__device__ __forceinline__ double ir_any(const Section& section, C scale, Place place) {
  const Untyped student{const_cast<void*>(section.student), section.student_dtype};
  const Untyped teacher{const_cast<void*>(section.teacher), section.teacher_dtype};
  const Untyped grad{section.grad, section.student_dtype};
  return ir_single<kind>(student, teacher, grad, 0, section.numel, scale, place);
}

// The thread's share of a section of tensors of the types S and T.
template <IrKind kind, typename S, typename T, typename C>
__device__ __forceinline__ double ir_typed(const Section& section, bool aligned, C scale, Place place) {
  constexpr int width = Walk<S, T>::width;
  const Typed<S> student{static_cast<S*>(const_cast<void*>(section.student))};
  const Typed<T> teacher{static_cast<T*>(const_cast<void*>(section.teacher))};
  const Typed<S> grad{static_cast<S*>(section.grad)};
  const double sum = aligned ? ir_aligned<kind, S, T>(section, scale, place) : 0.0;
  const Index begin = aligned ? section.numel / width * width : 0;
  return sum + ir_single<kind>(student, teacher, grad, begin, section.numel, scale, place);
}

LIT_HD constexpr int pair(DType student, DType teacher) {
  return static_cast<int>(student) * 4 + static_cast<int>(teacher);
}

// The thread's share of the sum of l(d) over a section. S: the type of all tensors, or Any.
template <IrKind kind, typename S, typename C>
__device__ __forceinline__ double ir_of_kind(const Section& section, C scale, Place place) {
  const bool aligned = is_aligned(section.student) && is_aligned(section.teacher) && is_aligned(section.grad);
  if constexpr (!is_any<S>) {
    return ir_typed<kind, S, S>(section, aligned, scale, place);
  } else if (aligned) {
    const int types = pair(section.student_dtype, section.teacher_dtype);
    if constexpr (sizeof(C) == sizeof(double)) {
      if (types == pair(DType::f64, DType::f64)) {
        return ir_typed<kind, double, double>(section, true, scale, place);
      }
    } else {
      switch (types) {
        case pair(DType::f16, DType::f16):
          return ir_typed<kind, Half, Half>(section, true, scale, place);
        case pair(DType::bf16, DType::bf16):
          return ir_typed<kind, BFloat16, BFloat16>(section, true, scale, place);
        case pair(DType::f32, DType::f32):
          return ir_typed<kind, float, float>(section, true, scale, place);
        case pair(DType::f32, DType::f16):
          return ir_typed<kind, float, Half>(section, true, scale, place);
        case pair(DType::f16, DType::f32):
          return ir_typed<kind, Half, float>(section, true, scale, place);
        case pair(DType::f32, DType::bf16):
          return ir_typed<kind, float, BFloat16>(section, true, scale, place);
        case pair(DType::bf16, DType::f32):
          return ir_typed<kind, BFloat16, float>(section, true, scale, place);
        default:
          break;
      }
    }
  }
  return ir_any<kind>(section, scale, place);
}

// rows: which of the section's rows count; with a null pointer, all.
template <typename S, typename C>
__device__ __forceinline__ double ir_section(const Section& section, CountedRows rows, IrKind kind, C scale,
                                             Place place) {
  if (rows.counted != nullptr) {
    switch (kind) {
      case IrKind::l2:
        return ir_counted<IrKind::l2, S>(section, rows, scale, place);
      case IrKind::l1:
        return ir_counted<IrKind::l1, S>(section, rows, scale, place);
      default:
        return ir_counted<IrKind::smooth_l1, S>(section, rows, scale, place);
    }
  }
  switch (kind) {
    case IrKind::l2:
      return ir_of_kind<IrKind::l2, S>(section, scale, place);
    case IrKind::l1:
      return ir_of_kind<IrKind::l1, S>(section, scale, place);
    default:
      return ir_of_kind<IrKind::smooth_l1, S>(section, scale, place);
  }
}

}  // namespace lit_fast::cuda
