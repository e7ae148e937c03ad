// exp for vectorised loops: the standard library's is a call per element.

inline double exp_nonpositive(double x) { return std::exp(x); }

// e^x for x <= 0 (the exponents of a softmax) within 2 units in the last place; below the smallest normal number it is
// 0. Minimax polynomial on [-ln 2 / 2, ln 2 / 2] from Cephes (S. Moshier, expf). NaN gives NaN.
inline float exp_nonpositive(float x) {
  constexpr float lowest = -87.3365f;        // ln of the smallest normal number
  constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer and shows it in the low bits
  const float shifted = x * 1.44269504f + to_integer;
  const float n = shifted - to_integer;
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127u) << 23;  // the exponent field of 2^n: the rest of `shifted` falls off at the top
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return x < lowest ? 0.0f : p * power;
}
