/* Attention of queries that share keys and values, and rotary position embedding. */
#ifndef MILORA_ATTENTION_H
#define MILORA_ATTENTION_H
#include "vectors.h"

static void rotate(const float *x, const float *cosine, const float *sine, int64_t pairs, int64_t width, float *y) {
  for (int64_t i = 0; i < pairs; i++) {
    const float a = x[i], b = x[i + pairs];
    y[i] = a * cosine[i] - b * sine[i];
    y[i + pairs] = b * cosine[i] + a * sine[i];
  }
  for (int64_t i = 2 * pairs; i < width; i++) y[i] = x[i];
}

/* y [count, width] = scores [count, positions] v for up to four queries, which read v together. */
INLINE void weigh(const void *v, int64_t width, int64_t positions, const float *scores, int64_t step, const float *inverse, float *y,
                  const int form, const int count, const int vectors, int64_t i) {
  vec sums[4][4];
  for (int h = 0; h < count; h++)
    for (int j = 0; j < vectors; j++) sums[h][j] = zero();
  for (int64_t p = 0; p < positions; p++) {
    const int64_t at = p * width + i;
    for (int j = 0; j < vectors * LANES; j += 64 / (int)bytes_of(form)) ahead(v, bytes_of(form) * (at + j) + 4096);
    vec own[4];
    for (int j = 0; j < vectors; j++) own[j] = load_as(v, at + j * LANES, form);
    for (int h = 0; h < count; h++) {
      const vec w = all(scores[h * step + p]);
      for (int j = 0; j < vectors; j++) sums[h][j] = multiply_add(own[j], w, sums[h][j]);
    }
  }
  for (int h = 0; h < count; h++)
    for (int j = 0; j < vectors; j++) store(y + h * width + i + j * LANES, times(sums[h][j], all(inverse[h])));
}

/* Scores of up to four queries with four keys, which they read together. */
INLINE void compare(const void *k, int64_t at, int64_t width, const float *q, float scale, float *scores, int64_t step, const int form,
                    const int count) {
  vec s[4][4];
  for (int h = 0; h < count; h++)
    for (int j = 0; j < 4; j++) s[h][j] = zero();
  for (int64_t i = 0; i < width; i += LANES) {
    vec keys[4];
    for (int j = 0; j < 4; j++) keys[j] = load_as(k, at + j * width + i, form);
    for (int h = 0; h < count; h++) {
      const vec own = load(q + h * width + i);
      for (int j = 0; j < 4; j++) s[h][j] = multiply_add(keys[j], own, s[h][j]);
    }
  }
  for (int h = 0; h < count; h++)
    _mm_storeu_ps(scores + h * step, _mm_mul_ps(totals(s[h][0], s[h][1], s[h][2], s[h][3]), _mm_set1_ps(scale)));
}

INLINE void attend_as(const float *q, const void *k, const void *v, int64_t heads, int64_t width, int64_t count, float scale, float *scores,
                      float *y, const int form) {
  const int64_t step = (count + LANES - 1) / LANES * LANES;
  int64_t p = 0;
  for (; p + 4 <= count; p += 4) {
    const int64_t at = p * width;
    for (int64_t i = 0; i < 4 * width * bytes_of(form); i += 64) ahead(k, bytes_of(form) * at + i + 4096);
    for (int64_t h = 0; h < heads; h += 4) {
      const float *own = q + h * width;
      float *target = scores + h * step + p;
      const int64_t together = heads - h;
      if (together == 1) compare(k, at, width, own, scale, target, step, form, 1);
      else if (together == 2) compare(k, at, width, own, scale, target, step, form, 2);
      else if (together == 3) compare(k, at, width, own, scale, target, step, form, 3);
      else compare(k, at, width, own, scale, target, step, form, 4);
    }
  }
  for (; p < count; p++) {
    for (int64_t h = 0; h < heads; h++) {
      vec s = zero();
      for (int64_t i = 0; i < width; i += LANES) s = multiply_add(load_as(k, p * width + i, form), load(q + h * width + i), s);
      scores[h * step + p] = total(s) * scale;
    }
  }
  for (int64_t i = 0; i < 4096; i += 64) ahead(v, i);
  for (int64_t h = 0; h < heads; h += 4) {
    const int64_t together = heads - h < 4 ? heads - h : 4;
    float inverse[4];
    for (int64_t g = 0; g < together; g++) inverse[g] = 1 / exponentials(scores + (h + g) * step, count, step);
    for (int64_t i = 0; i < width; i += 4 * LANES) {
      const float *own = scores + h * step;
      float *target = y + h * width;
      const int wide = width - i >= 4 * LANES;
      if (wide && together == 1) weigh(v, width, count, own, step, inverse, target, form, 1, 4, i);
      else if (wide && together == 2) weigh(v, width, count, own, step, inverse, target, form, 2, 4, i);
      else if (wide && together == 3) weigh(v, width, count, own, step, inverse, target, form, 3, 4, i);
      else if (wide) weigh(v, width, count, own, step, inverse, target, form, 4, 4, i);
      else
        for (int64_t g = 0; g < together; g++)
          for (int64_t j = i; j < width; j += LANES) weigh(v, width, count, own + g * step, step, inverse + g, target + g * width, form, 1, 1, j);
    }
  }
}

static void attend(const float *q, const void *k, const void *v, int form, int64_t heads, int64_t width, int64_t count, float scale,
                   float *scores, float *y) {
  if (form == FLOAT16) attend_as(q, k, v, heads, width, count, scale, scores, y, FLOAT16);
  else attend_as(q, k, v, heads, width, count, scale, scores, y, FLOAT32);
}
#endif
