// Tensors of any floating dtype, read and written in blocks of the type that is computed in.

constexpr int64_t kBlock = 512;  // elements: three float64 buffers of a block fit the first-level cache

// --- conversions of n elements; T is float or double

template <typename S, typename T>
inline void widen(const S* source, T* target, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    target[i] = static_cast<T>(source[i]);
  }
}

template <typename T, typename S>
inline void narrow(const T* source, S* target, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    target[i] = static_cast<S>(source[i]);
  }
}

// Written out in integers, which compilers vectorise.
inline void narrow(const float* source, c10::BFloat16* target, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, source + i, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    target[i].x = static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded);
  }
}

#if defined(LIT_F16C)
inline void widen(const c10::Half* source, float* target, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(target + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i))));
  }
  for (; i < n; ++i) {
    target[i] = static_cast<float>(source[i]);
  }
}

inline void narrow(const float* source, c10::Half* target, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT));
  }
  for (; i < n; ++i) {
    target[i] = static_cast<c10::Half>(source[i]);
  }
}
#endif

// --- blocks

// Calls f with a null pointer to the C++ type of `dtype`.
template <typename F>
inline void with_type(c10::ScalarType dtype, F&& f) {
  switch (dtype) {
    case c10::ScalarType::Half:
      return f(static_cast<c10::Half*>(nullptr));
    case c10::ScalarType::BFloat16:
      return f(static_cast<c10::BFloat16*>(nullptr));
    case c10::ScalarType::Float:
      return f(static_cast<float*>(nullptr));
    default:
      return f(static_cast<double*>(nullptr));
  }
}

template <typename T>
inline constexpr c10::ScalarType kDtype =
    sizeof(T) == sizeof(double) ? c10::ScalarType::Double : c10::ScalarType::Float;

// Elements begin .. begin + n: those of the source itself where its dtype is T, else `buffer` filled with them.
template <typename T>
inline const T* load(const Source& source, int64_t begin, int64_t n, T* buffer) {
  if (source.dtype == kDtype<T>) {
    return static_cast<const T*>(source.data) + begin;
  }
  with_type(source.dtype, [&](auto* type) {
    widen(static_cast<const std::remove_pointer_t<decltype(type)>*>(source.data) + begin, buffer, n);
  });
  return buffer;
}

// Where to write the elements from `begin` on: the target itself where its dtype is T, else `buffer`.
template <typename T>
inline T* place(const Target& target, int64_t begin, T* buffer) {
  return target.dtype == kDtype<T> ? static_cast<T*>(target.data) + begin : buffer;
}

// Sets n elements to 0.
inline void clear(const Target& target, int64_t begin, int64_t n) {
  with_type(target.dtype, [&](auto* type) {
    using Stored = std::remove_pointer_t<decltype(type)>;
    std::memset(static_cast<void*>(static_cast<Stored*>(target.data) + begin), 0, n * sizeof(Stored));
  });
}

// Rounds n elements written to `buffer` into the target, where they are not there yet.
template <typename T>
inline void store(const Target& target, int64_t begin, int64_t n, const T* buffer) {
  if (target.dtype == kDtype<T>) {
    return;
  }
  with_type(target.dtype, [&](auto* type) {
    narrow(buffer, static_cast<std::remove_pointer_t<decltype(type)>*>(target.data) + begin, n);
  });
}
