// lit_fast::tokenise_reviews: lines of "class","title","text" to rows of tokens. lit_fast/data/reviews.py tells the
// form and holds the reference, which also says what is wrong with a line that is refused here.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <tuple>
#include <vector>

namespace lit_fast::text {
namespace {

using Byte = uint8_t;
constexpr Byte kUnknown = 1;  // lit_fast/data/alphabet.py; the token of padding is 0

// The length in bytes of the UTF-8 sequence at `at`, 2 to 4; 0 if it is none (Unicode 15, table 3-7).
int sequence(const Byte* at, const Byte* end) {
  const auto follows = [&](int i, Byte low = 0x80, Byte high = 0xBF) {
    return at + i < end && at[i] >= low && at[i] <= high;
  };
  const Byte first = *at;
  if (first >= 0xC2 && first <= 0xDF) {
    return follows(1) ? 2 : 0;
  }
  if (first >= 0xE0 && first <= 0xEF) {
    const Byte low = first == 0xE0 ? 0xA0 : 0x80, high = first == 0xED ? 0x9F : 0xBF;  // neither overlong nor surrogate
    return follows(1, low, high) && follows(2) ? 3 : 0;
  }
  if (first >= 0xF0 && first <= 0xF4) {
    const Byte low = first == 0xF0 ? 0x90 : 0x80, high = first == 0xF4 ? 0x8F : 0xBF;
    return follows(1, low, high) && follows(2) && follows(3) ? 4 : 0;
  }
  return 0;
}

// Writes the tokens of the field that begins at `at` (its opening quote) to `out`, no further than `full`. Gives the
// place behind the closing quote, or nullptr if there is no such field.
const Byte* field(const Byte* at, const Byte* end, const Byte* table, Byte*& out, const Byte* full) {
  if (at == end || *at != '"') {
    return nullptr;
  }
  const auto put = [&](Byte token) {
    if (out < full) {
      *out++ = token;
    }
  };
  for (++at; at < end;) {
    const Byte byte = *at;
    if (byte == '"') {
      if (at + 1 == end || at[1] != '"') {
        return at + 1;
      }
      put(table[byte]);
      at += 2;
    } else if (byte == '\\' && at + 1 < end && at[1] == 'n') {
      put(kUnknown);
      at += 2;
    } else if (byte < 0x80) {
      put(table[byte]);
      ++at;
    } else {
      const int bytes = sequence(at, end);
      if (bytes == 0) {
        return nullptr;
      }
      put(kUnknown);
      at += bytes;
    }
  }
  return nullptr;
}

// Tokens and class (from 0) of the line [at, end), without its line break; false if it is malformed.
bool line(const Byte* at, const Byte* end, const Byte* table, int64_t length, int64_t classes, Byte* row, Byte* label) {
  if (end > at && end[-1] == '\r') {
    --end;
  }
  if (at == end || *at++ != '"') {
    return false;
  }
  int64_t number = 0;
  const Byte* const digits = at;
  for (; at < end && *at >= '0' && *at <= '9' && at - digits < 9; ++at) {
    number = 10 * number + (*at - '0');
  }
  if (number < 1 || number > classes || end - at < 2 || at[0] != '"' || at[1] != ',') {
    return false;
  }
  *label = static_cast<Byte>(number - 1);
  Byte* const full = row + length;
  at = field(at + 2, end, table, row, full);
  if (at == nullptr || at == end || *at != ',') {
    return false;
  }
  if (row < full) {
    *row++ = table[' '];
  }
  return field(at + 1, end, table, row, full) == end;
}

// content: uint8 [bytes]; table: uint8 [256], the token of each byte. Gives tokens uint8 [N, length], labels uint8 [N]
// and -1, -1; or, if a line is malformed, where the first such line begins and its number from 0.
std::tuple<at::Tensor, at::Tensor, int64_t, int64_t> tokenise_reviews(const at::Tensor& content,
                                                                      const at::Tensor& table, int64_t length,
                                                                      int64_t classes) {
  const auto bytes = [](const at::Tensor& t) {
    return t.scalar_type() == at::kByte && t.dim() == 1 && t.is_contiguous();
  };
  TORCH_CHECK_VALUE(bytes(content), "tokenise_reviews: content: expected uint8 [bytes], contiguous, got ",
                    content.scalar_type(), " ", content.sizes());
  TORCH_CHECK_VALUE(bytes(table) && table.numel() == 256, "tokenise_reviews: table: expected uint8 [256], got ",
                    table.scalar_type(), " ", table.sizes());
  TORCH_CHECK_VALUE(length > 0 && classes > 0 && classes <= 256,
                    "tokenise_reviews: expected length > 0 and 1 to 256 classes, got ", length, " and ", classes);
  const Byte* const text = content.const_data_ptr<Byte>();
  const Byte* const of_byte = table.const_data_ptr<Byte>();
  const int64_t size = content.numel();
  std::vector<int64_t> starts;  // of the lines, then the end
  for (int64_t at = 0; at < size;) {
    starts.push_back(at);
    const void* found = std::memchr(text + at, '\n', size - at);
    at = found == nullptr ? size + 1 : static_cast<const Byte*>(found) - text + 1;
  }
  const auto rows = static_cast<int64_t>(starts.size());
  starts.push_back(size > 0 && text[size - 1] != '\n' ? size + 1 : size);

  at::Tensor tokens = at::zeros({rows, length}, content.options());
  at::Tensor labels = at::empty({rows}, content.options());
  Byte* const token_rows = tokens.mutable_data_ptr<Byte>();
  Byte* const label_rows = labels.mutable_data_ptr<Byte>();
  std::atomic<int64_t> wrong{rows};
  at::parallel_for(0, rows, /*grain_size=*/64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (!line(text + starts[i], text + starts[i + 1] - 1, of_byte, length, classes, token_rows + i * length,
                label_rows + i)) {
        int64_t first = wrong.load();
        while (i < first && !wrong.compare_exchange_weak(first, i)) {
        }
        return;
      }
    }
  });
  const int64_t first = wrong.load();
  return first == rows ? std::tuple(tokens, labels, int64_t{-1}, int64_t{-1})
                       : std::tuple(tokens, labels, starts[first], first);
}

}  // namespace
}  // namespace lit_fast::text

TORCH_LIBRARY_FRAGMENT(lit_fast, m) {
  m.def("tokenise_reviews(Tensor content, Tensor table, int length, int classes) -> (Tensor, Tensor, int, int)");
}
TORCH_LIBRARY_IMPL(lit_fast, CPU, m) { m.impl("tokenise_reviews", &lit_fast::text::tokenise_reviews); }
