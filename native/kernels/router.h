/* MiLoRA's router: which experts a prompt has, from its tokens' residual stream. */
#ifndef MILORA_ROUTER_H
#define MILORA_ROUTER_H
#include "vectors.h"

/* x . y, in an order that depends on the width alone. */
INLINE float dot(const float *x, const float *y, int64_t width) {
  vec sums[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * LANES <= width; i += 4 * LANES)
    for (int j = 0; j < 4; j++) sums[j] = multiply_add(load(x + i + j * LANES), load(y + i + j * LANES), sums[j]);
  for (; i + LANES <= width; i += LANES) sums[0] = multiply_add(load(x + i), load(y + i), sums[0]);
  float sum = total(plus(plus(sums[0], sums[1]), plus(sums[2], sums[3])));
  for (; i < width; i++) sum = __builtin_fmaf(x[i], y[i], sum);
  return sum;
}

INLINE vec maximum(vec a, vec b) { return if_nan(a, a, larger(a, b)); }

/* NV vectors of what is pooled of tokens: their sum with weights or, without those, the largest. */
INLINE void pool_vectors(const float *hidden, int64_t width, const int32_t *tokens, int64_t count, const float *weights, float *y,
                         const int NV) {
  vec pooled[4];
  for (int j = 0; j < NV; j++) pooled[j] = weights ? zero() : all(-__builtin_inff());
  for (int64_t t = 0; t < count; t++) {
    const float *row = hidden + tokens[t] * width;
    const vec w = all(weights ? weights[t] : 0);
    for (int j = 0; j < NV; j++) {
      const vec x = load(row + j * LANES);
      pooled[j] = weights ? multiply_add(x, w, pooled[j]) : maximum(pooled[j], x);
    }
  }
  for (int j = 0; j < NV; j++) store(y + j * LANES, pooled[j]);
}

INLINE void pool(const float *hidden, int64_t width, const int32_t *tokens, int64_t count, const float *weights, float *y) {
  int64_t i = 0;
  for (; i + 4 * LANES <= width; i += 4 * LANES) pool_vectors(hidden + i, width, tokens, count, weights, y + i, 4);
  for (; i + LANES <= width; i += LANES) pool_vectors(hidden + i, width, tokens, count, weights, y + i, 1);
  for (; i < width; i++) {
    float pooled = weights ? 0 : -__builtin_inff();
    for (int64_t t = 0; t < count; t++) {
      const float x = hidden[tokens[t] * width + i];
      if (weights) pooled = __builtin_fmaf(x, weights[t], pooled);
      else if (x > pooled || x != x) pooled = x;
      if (!weights && x != x) break;
    }
    y[i] = pooled;
  }
}

/* The error function, to a unit in the last place: a polynomial, beyond 0.93 in an exponent. */
INLINE vec erf_of(vec x) {
  static const float inner[] = {-5.96761703e-4f, 4.99119423e-3f, -2.67681349e-2f, 1.12819925e-1f, -3.76125336e-1f, 1.28379166e-1f};
  static const float outer[] = {-1.72853470e-5f, 3.83197126e-4f, -3.88396438e-3f, 2.42546219e-2f,
                                -1.06777877e-1f, -6.34846687e-1f, -1.28717512e-1f};
  const vec t = smaller(all(4), absolute(x)); /* in this order NaN stays */
  vec small = all(inner[0]), large = all(outer[0]);
  for (int i = 1; i < 6; i++) small = multiply_add(small, times(t, t), all(inner[i]));
  for (int i = 1; i < 7; i++) large = multiply_add(large, t, all(outer[i]));
  const vec near = multiply_add(small, t, t), far = minus(all(1), exp_of(minus(times(large, t), t)));
  return signed_as(if_more(t, all(0.927734375f), far, near), x);
}

INLINE vec activated(const Router *router, vec x) {
  if (router->activation == GELU) return times(times(all(0.5f), x), plus(all(1), erf_of(times(x, all(0.707106781f)))));
  if (router->activation == RELU) return larger(zero(), x); /* in this order NaN stays */
  if (router->activation == IDENTITY) return x;
  vec p = all(router->numerator[6]), q = all(router->denominator[4]);
  for (int i = 5; i >= 0; i--) p = multiply_add(p, x, all(router->numerator[i]));
  for (int i = 3; i >= 0; i--) q = multiply_add(q, x, all(router->denominator[i]));
  return over(p, plus(all(1), absolute(times(q, x))));
}

static void choose(const Router *router, const float *scores, const float *probabilities, float *gates) {
  float sum = 0;
  for (int64_t e = 0; e < router->experts; e++) {
    int64_t before = 0; /* experts that are chosen first */
    for (int64_t f = 0; f < router->experts; f++) before += scores[f] > scores[e] || (scores[f] == scores[e] && f < e);
    gates[e] = before >= router->top_k ? 0 : router->weight == STRAIGHT_THROUGH ? 1 : probabilities[e];
    sum += gates[e];
  }
  if (router->weight == RENORMALIZED)
    for (int64_t e = 0; e < router->experts; e++) gates[e] /= sum;
}

static void route(const Router *router, const float *hidden, const int32_t *tokens, int64_t count, int64_t width, float *scratch,
                  float *gates, float *probabilities) {
  const int64_t experts = router->experts, lanes = LANES - 1;
  float *features = scratch, *scores = features + ((width + lanes) & ~lanes), *weights = scores + ((experts + lanes) & ~lanes);
  if (router->pooling == SELF_ATTENTION) {
    for (int64_t t = 0; t < count; t++) weights[t] = dot(hidden + tokens[t] * width, router->pooler, width);
    const float inverse = 1 / exponentials(weights, count, (count + lanes) & ~lanes);
    for (int64_t t = 0; t < count; t++) weights[t] *= inverse;
  } else if (router->pooling == LAST) {
    tokens += count - 1, count = 1;
    weights[0] = 1;
  } else {
    for (int64_t t = 0; t < count; t++) weights[t] = 1 / (float)count;
  }
  pool(hidden, width, tokens, count, router->pooling == MAX ? NULL : weights, features);
  const vec factor = all(router->rms ? 1 / __builtin_sqrtf(dot(features, features, width) / (float)width + 1e-6f) : 1);
  for (int64_t i = width; i & lanes; i++) features[i] = 0;
  for (int64_t i = 0; i < width; i += LANES) store(features + i, activated(router, times(load(features + i), factor)));
  for (int64_t e = 0; e < experts; e++) probabilities[e] = scores[e] = dot(router->gate + e * width, features, width);
  const float inverse = 1 / exponentials(scores, experts, (experts + lanes) & ~lanes);
  for (int64_t e = 0; e < experts; e++) {
    const float score = probabilities[e];
    probabilities[e] = scores[e] * inverse;
    scores[e] = score;
  }
  choose(router, scores, probabilities, gates);
}

#endif
