// lit_fast::gather_batch on the CPU: a batch of a resident dataset, cropped, mirrored and normalised in one pass.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <optional>

namespace lit_fast::cpu {
namespace {

constexpr int64_t kGrain = 32768;  // elements for which another thread is woken

// Rows of the plan.
enum Plan : int64_t { kImage, kLabel, kRow, kColumn, kFlip, kPlanRows };

struct Problem {
  const int64_t* plan;    // [rows_of_plan, length]
  const uint8_t* images;  // [count, channels, height, width]
  int64_t* labels;        // [batch]
  int64_t start;          // position in the plan of the batch's first row
  int64_t length, count, batch, channels, height, width;
  int64_t channel_stride, pixel_stride;  // of the output, in elements
  int64_t pad;
  bool moved;  // the plan holds crops and flips
};

// One channel of one image. Padding is a pixel of 0.
template <typename T>
void write_plane(const Problem& p, const uint8_t* plane, const T* levels, int64_t dy, int64_t dx, bool flip, T* out) {
  const int64_t step = flip ? -p.pixel_stride : p.pixel_stride;
  const int64_t begin = std::clamp<int64_t>(-dx, 0, p.width), end = std::clamp<int64_t>(p.width - dx, begin, p.width);
  for (int64_t y = 0; y < p.height; ++y) {
    T* to = out + (y * p.width + (flip ? p.width - 1 : 0)) * p.pixel_stride;
    const bool inside = y + dy >= 0 && y + dy < p.height;
    const int64_t first = inside ? begin : p.width, last = inside ? end : p.width;
    int64_t x = 0;
    for (; x < first; ++x, to += step) {
      *to = levels[0];
    }
    const uint8_t* from = plane + (y + dy) * p.width + dx;
    for (; x < last; ++x, to += step) {
      *to = levels[from[x]];
    }
    for (; x < p.width; ++x, to += step) {
      *to = levels[0];
    }
  }
}

// The source row of row `b` of the batch; writes its label.
int64_t source_of(const Problem& p, int64_t b) {
  const int64_t at = p.start + b;
  const int64_t image = p.plan[kImage * p.length + at];
  TORCH_CHECK_INDEX(image >= 0 && image < p.count, "gather_batch: plan: expected images 0..", p.count - 1, ", got ",
                    image, " at position ", at);
  p.labels[b] = p.plan[kLabel * p.length + at];
  return image;
}

// T: as wide as an element of the output; its bits are copied from `levels` [channels, 256].
template <typename T>
void gather_images(const Problem& p, const T* levels, T* out) {
  const int64_t plane = p.height * p.width, size = p.channels * plane;
  at::parallel_for(0, p.batch, std::max<int64_t>(1, kGrain / size), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const uint8_t* image = p.images + source_of(p, b) * size;
      const int64_t* plan = p.plan + p.start + b;
      const int64_t dy = p.moved ? plan[kRow * p.length] - p.pad : 0;
      const int64_t dx = p.moved ? plan[kColumn * p.length] - p.pad : 0;
      const bool flip = p.moved && plan[kFlip * p.length] != 0;
      for (int64_t c = 0; c < p.channels; ++c) {
        write_plane(p, image + c * plane, levels + c * 256, dy, dx, flip, out + b * size + c * p.channel_stride);
      }
    }
  });
}

void gather_tokens(const Problem& p, int64_t* out) {
  at::parallel_for(0, p.batch, std::max<int64_t>(1, kGrain / p.width), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const uint8_t* text = p.images + source_of(p, b) * p.width;
      std::copy(text, text + p.width, out + b * p.width);
    }
  });
}

void check(const at::Tensor& position, const at::Tensor& plan, const at::Tensor& images,
           const std::optional<at::Tensor>& levels, const at::Tensor& out, const at::Tensor& labels) {
  TORCH_CHECK_VALUE(position.numel() == 1 && position.scalar_type() == at::kLong,
                    "gather_batch: position: expected one int64, got ", position.scalar_type(), " ", position.sizes());
  TORCH_CHECK_VALUE(plan.dim() == 2 && plan.scalar_type() == at::kLong && plan.is_contiguous() &&
                        (plan.size(0) == kRow || plan.size(0) == kPlanRows),
                    "gather_batch: plan: expected contiguous int64 [2 or 5, N], got ", plan.scalar_type(), " ",
                    plan.sizes());
  const int64_t dim = levels ? 4 : 2;
  TORCH_CHECK_VALUE(images.dim() == dim && images.scalar_type() == at::kByte && images.is_contiguous(),
                    "gather_batch: images: expected contiguous uint8 [M, C, H, W], or [M, L] without levels, got ",
                    images.scalar_type(), " ", images.sizes());
  TORCH_CHECK_VALUE(out.dim() == dim && out.sizes().slice(1) == images.sizes().slice(1),
                    "gather_batch: out: expected [B, ...] of images ", images.sizes(), ", got ", out.sizes());
  TORCH_CHECK_VALUE(out.is_contiguous() || (levels && out.is_contiguous(at::MemoryFormat::ChannelsLast)),
                    "gather_batch: out: expected contiguous or channels_last, got strides ", out.strides());
  TORCH_CHECK_VALUE(
      labels.dim() == 1 && labels.scalar_type() == at::kLong && labels.is_contiguous() && labels.size(0) == out.size(0),
      "gather_batch: labels: expected contiguous int64 [", out.size(0), "], got ", labels.scalar_type(), " ",
      labels.sizes());
  if (levels) {
    TORCH_CHECK_VALUE(levels->dim() == 2 && levels->size(0) == images.size(1) && levels->size(1) == 256 &&
                          levels->is_contiguous() && levels->scalar_type() == out.scalar_type(),
                      "gather_batch: levels: expected contiguous ", out.scalar_type(), " [", images.size(1),
                      ", 256], got ", levels->scalar_type(), " ", levels->sizes());
  } else {
    TORCH_CHECK_VALUE(out.scalar_type() == at::kLong, "gather_batch: out: expected int64 for tokens, got ",
                      out.scalar_type());
  }
}

void gather_batch(const at::Tensor& position, const at::Tensor& plan, const at::Tensor& images,
                  const std::optional<at::Tensor>& levels, int64_t pad, int64_t first, at::Tensor& out,
                  at::Tensor& labels) {
  check(position, plan, images, levels, out, labels);
  if (out.numel() == 0) {
    return;
  }
  const bool text = !levels;
  const int64_t channels = text ? 1 : images.size(1), height = text ? 1 : images.size(2), width = images.size(-1);
  const bool channels_last = !text && !out.is_contiguous();
  const Problem p{plan.const_data_ptr<int64_t>(),
                  images.const_data_ptr<uint8_t>(),
                  labels.mutable_data_ptr<int64_t>(),
                  *position.const_data_ptr<int64_t>() + first,
                  plan.size(1),
                  images.size(0),
                  out.size(0),
                  channels,
                  height,
                  width,
                  channels_last ? 1 : height * width,
                  channels_last ? channels : 1,
                  pad,
                  plan.size(0) == kPlanRows};
  TORCH_CHECK_INDEX(p.start >= 0 && p.start + p.batch <= p.length, "gather_batch: rows ", p.start, "..",
                    p.start + p.batch - 1, " are outside the plan of ", p.length);
  if (text) {
    return gather_tokens(p, out.mutable_data_ptr<int64_t>());
  }
  const void* table = levels->const_data_ptr();
  void* to = out.mutable_data_ptr();
  switch (out.element_size()) {
    case 2:
      return gather_images(p, static_cast<const uint16_t*>(table), static_cast<uint16_t*>(to));
    case 4:
      return gather_images(p, static_cast<const uint32_t*>(table), static_cast<uint32_t*>(to));
    default:
      TORCH_CHECK_TYPE(false, "gather_batch: out: expected float32, float16 or bfloat16, got ", out.scalar_type());
  }
}

}  // namespace
}  // namespace lit_fast::cpu

TORCH_LIBRARY_IMPL(lit_fast, CPU, m) { m.impl("gather_batch", &lit_fast::cpu::gather_batch); }
