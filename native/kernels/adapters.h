/* What low-rank adapters add to rows, and the copies of their numbers that this reads. */
#ifndef MILORA_ADAPTERS_H
#define MILORA_ADAPTERS_H
#include "vectors.h"

INLINE float half_to_float(uint16_t h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }
INLINE uint16_t float_to_half(float f) { return (uint16_t)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(f), 0)); }
INLINE vec load_as(const void *p, int64_t at, const int form) {
  if (form == INT8) return load_bytes((const int8_t *)p + at);
  return form == FLOAT16 ? load_half((const uint16_t *)p + at) : load((const float *)p + at);
}
INLINE float one_as(const void *p, int64_t at, const int form) {
  if (form == INT8) return ((const int8_t *)p)[at];
  return form == FLOAT16 ? half_to_float(((const uint16_t *)p)[at]) : ((const float *)p)[at];
}

INLINE void project_as(const void *a, const float *x, int64_t in, int64_t from, int64_t to, float *low, const int form) {
  int64_t r = from;
  for (; r + 4 <= to; r += 4) {
    vec s0 = zero(), s1 = zero(), s2 = zero(), s3 = zero();
    int64_t i = 0;
    for (; i + LANES <= in; i += LANES) {
      const vec v = load(x + i);
      s0 = multiply_add(load_as(a, r * in + i, form), v, s0);
      s1 = multiply_add(load_as(a, (r + 1) * in + i, form), v, s1);
      s2 = multiply_add(load_as(a, (r + 2) * in + i, form), v, s2);
      s3 = multiply_add(load_as(a, (r + 3) * in + i, form), v, s3);
      if (i % 32 == 0) {
        /* The next four rows lie where these end. */
        const char *next = (const char *)a + bytes_of(form) * ((r + 4) * in + 4 * i);
        for (int j = 0; j < 2 * bytes_of(form); j++) ahead(next, 64 * j);
      }
    }
    float t[4];
    _mm_storeu_ps(t, totals(s0, s1, s2, s3));
    for (; i < in; i++)
      for (int j = 0; j < 4; j++) t[j] += one_as(a, (r + j) * in + i, form) * x[i];
    for (int j = 0; j < 4; j++) low[r + j] = t[j];
  }
  for (; r < to; r++) {
    vec s = zero();
    int64_t i = 0;
    for (; i + LANES <= in; i += LANES) s = multiply_add(load_as(a, r * in + i, form), load(x + i), s);
    float t = total(s);
    for (; i < in; i++) t += one_as(a, r * in + i, form) * x[i];
    low[r] = t;
  }
}

static void project(const Item *item, const float *x, int64_t in, int64_t from, int64_t to, float *low) {
  if (item->form == FLOAT16) project_as(item->a, x, in, from, to, low, FLOAT16);
  else if (item->form == INT8) project_as(item->a, x, in, from, to, low, INT8);
  else project_as(item->a, x, in, from, to, low, FLOAT32);
  if (item->ranks)
    for (int64_t r = from; r < to; r++) low[r] *= item->ranks[r];
}

/* `width` outputs, at most BAND and in whole vectors but for the rest, whose sums stay in registers over all ranks. */
INLINE void expand_band(const void *b, int64_t bandWidth, int64_t rank, const float *low, int64_t width, float *target, const int form,
                        const int vectors) {
  vec sums[BAND / 8];
  for (int j = 0; j < vectors; j++) sums[j] = zero();
  for (int64_t r = 0; r < rank; r++) {
    const vec l = all(low[r]);
    for (int j = 0; j < vectors; j++) sums[j] = multiply_add(load_as(b, r * bandWidth + j * LANES, form), l, sums[j]);
    for (int j = 0; j < bytes_of(form) * vectors * LANES; j += 64) ahead(b, bytes_of(form) * r * bandWidth + 2048 + j);
  }
  for (int j = 0; j < vectors; j++) store(target + j * LANES, sums[j]);
  for (int64_t i = vectors * LANES; i < width; i++) {
    float sum = 0;
    for (int64_t r = 0; r < rank; r++) sum = __builtin_fmaf(one_as(b, r * bandWidth + i, form), low[r], sum);
    target[i] = sum;
  }
}

INLINE void expand_as(const Item *item, const float *low, int64_t from, int64_t to, float *sums, const int form) {
  const int64_t rank = item->rank, outputs = item->outputs;
  for (int64_t o = from, width; o < to; o += width) {
    const int64_t band = o / BAND * BAND, bandWidth = outputs - band < BAND ? outputs - band : BAND;
    width = (band + bandWidth < to ? band + bandWidth : to) - o;
    const void *b = (const char *)item->b + bytes_of(form) * (band * rank + (o - band));
    if (width == BAND) expand_band(b, bandWidth, rank, low, width, sums + o, form, BAND / LANES);
    else if (width >= BAND / 2) expand_band(b, bandWidth, rank, low, width = BAND / 2, sums + o, form, BAND / 2 / LANES);
    else if (width >= LANES) expand_band(b, bandWidth, rank, low, width = LANES, sums + o, form, 1);
    else expand_band(b, bandWidth, rank, low, width, sums + o, form, 0);
  }
}

static void expand(const Item *item, const float *low, int64_t from, int64_t to, float *sums) {
  if (item->form == FLOAT16) expand_as(item, low, from, to, sums, FLOAT16);
  else if (item->form == INT8) expand_as(item, low, from, to, sums, INT8);
  else expand_as(item, low, from, to, sums, FLOAT32);
}

static void change(const Item *item, const float *sums, int64_t from, int64_t to, float *y) {
  const int linear = !item->scale && !item->bias, whole = linear || item->gate == 1;
  const float factor = (float)(linear ? item->factor * item->gate : item->factor), gate = (float)item->gate;
  int64_t o = from;
  for (; o + LANES <= to; o += LANES) {
    const vec before = load(y + o);
    vec t = item->a ? multiply_add(load(sums + o), all(factor), before) : before;
    if (item->scale) t = times(t, load(item->scale + o));
    if (item->bias) t = plus(t, load(item->bias + o));
    store(y + o, whole ? t : multiply_add(minus(t, before), all(gate), before));
  }
  for (; o < to; o++) {
    const float before = y[o];
    float t = item->a ? __builtin_fmaf(sums[o], factor, before) : before;
    if (item->scale) t *= item->scale[o];
    if (item->bias) t += item->bias[o];
    y[o] = whole ? t : __builtin_fmaf(t - before, gate, before);
  }
}

/* Copies `count` numbers in a form to place `at` of `target`; `inverse` is what they are multiplied with for INT8. */
INLINE void copy_as(const float *source, int64_t count, int form, float inverse, void *target, int64_t at) {
  int64_t i = 0;
  if (form == INT8) {
    for (; i < count; i++) ((int8_t *)target)[at + i] = (int8_t)__builtin_rintf(source[i] * inverse);
    return;
  }
  for (; i + LANES <= count; i += LANES) {
    if (form == FLOAT16) store_half((uint16_t *)target + at + i, load(source + i));
    else store((float *)target + at + i, load(source + i));
  }
  for (; i < count; i++) {
    if (form == FLOAT16) ((uint16_t *)target)[at + i] = float_to_half(source[i]);
    else ((float *)target)[at + i] = source[i];
  }
}

/* The scale of `count` numbers `step` from each other, which goes to `*rank`; returns what they are to be multiplied with. */
static float scale_of(const float *source, int64_t count, int64_t step, float *rank) {
  float most = 0;
  for (int64_t i = 0; i < count; i++) {
    const float a = __builtin_fabsf(source[i * step]);
    most = a > most || a != a ? a : most;
  }
  *rank *= most / 127;
  return most > 0 ? 127 / most : 0;
}

static void pack(const float *source, int64_t rows, int64_t columns, int banded, int form, void *target, float *ranks) {
  if (!banded) {
    if (form != INT8) copy_as(source, rows * columns, form, 0, target, 0);
    else
      for (int64_t r = 0; r < rows; r++)
        copy_as(source + r * columns, columns, form, scale_of(source + r * columns, columns, 1, ranks + r), target, r * columns);
    return;
  }
  for (int64_t c = 0; c < columns; c++) {
    const float inverse = form == INT8 ? scale_of(source + c, rows, columns, ranks + c) : 0;
    for (int64_t band = 0; band < rows; band += BAND) {
      const int64_t width = rows - band < BAND ? rows - band : BAND;
      float one[BAND];
      for (int64_t i = 0; i < width; i++) one[i] = source[(band + i) * columns + c];
      copy_as(one, width, form, inverse, target, band * columns + c * width);
    }
  }
}
#endif
