/* What is done to each row by itself. */
#ifndef MILORA_ROWS_H
#define MILORA_ROWS_H
#include "vectors.h"

/* x / (1 + exp(-x)) by the exponential of a number that is not positive; NaN stays NaN. */
INLINE vec silu_of(vec x) {
#ifdef __AVX512VNNI__
  const __mmask16 negative = _mm512_movepi32_mask(_mm512_castps_si512(x));
  const vec e = exp_of(_mm512_or_ps(x, all(-0.0f)));
  return _mm512_div_ps(_mm512_mask_mul_ps(x, negative, x, e), plus(all(1), e));
#else
  const vec e = exp_of(_mm256_or_ps(x, all(-0.0f)));
  return _mm256_div_ps(_mm256_blendv_ps(x, times(x, e), x), plus(all(1), e));
#endif
}

static void gate(const float *x, int64_t width, float *y) {
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) store(y + i, times(silu_of(load(x + i)), load(x + width + i)));
  if (i < width) {
    float a[LANES] = {0}, b[LANES] = {0};
    for (int64_t j = i; j < width; j++) a[j - i] = x[j], b[j - i] = x[width + j];
    store(a, times(silu_of(load(a)), load(b)));
    for (int64_t j = i; j < width; j++) y[j] = a[j - i];
  }
}

static void add_norm(const float *x, const float *skip, const float *weight, int64_t width, float eps, float *sum, float *y) {
  vec squares[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * LANES <= width; i += 4 * LANES) {
    for (int j = 0; j < 4; j++) {
      const vec s = plus(load(x + i + j * LANES), load(skip + i + j * LANES));
      store(sum + i + j * LANES, s);
      squares[j] = multiply_add(s, s, squares[j]);
    }
  }
  float mean = total(plus(plus(squares[0], squares[1]), plus(squares[2], squares[3])));
  for (; i < width; i++) {
    sum[i] = x[i] + skip[i];
    mean = __builtin_fmaf(sum[i], sum[i], mean);
  }
  const float factor = 1 / __builtin_sqrtf(mean / (float)width + eps);
  i = 0;
  for (; i + LANES <= width; i += LANES) store(y + i, times(times(load(sum + i), all(factor)), load(weight + i)));
  for (; i < width; i++) y[i] = sum[i] * factor * weight[i];
}

static void widen(const uint16_t *source, int64_t count, float *target) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(target + i, load_half(source + i));
  for (; i < count; i++) target[i] = half_to_float(source[i]);
}

static void narrow(const float *source, int64_t count, uint16_t *target) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store_half(target + i, load(source + i));
  for (; i < count; i++) target[i] = float_to_half(source[i]);
}
#endif
