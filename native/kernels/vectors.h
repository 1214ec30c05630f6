/* A vector of the instruction set that the compiler is told, AVX-512 with VNNI or AVX2 with FMA and F16C, and what is done with it. */
#ifndef MILORA_VECTORS_H
#define MILORA_VECTORS_H
#include "../kernels.h"
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

#ifdef __AVX512VNNI__
#define KERNELS kernels_avx512
enum { LANES = 16 };
/* Outputs that 8, 4, 2 rows and one meet at a time: as many as the registers hold. */
enum { NR8 = 2, NR4 = 4, NR2 = 4, NR1 = 4 };
typedef __m512 vec;
typedef __m512i ivec;
INLINE vec load(const float *p) { return _mm512_loadu_ps(p); }
INLINE vec load_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE vec load_bytes(const int8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p))); }
INLINE void store(float *p, vec v) { _mm512_storeu_ps(p, v); }
INLINE void store_half(uint16_t *p, vec v) { _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, 0)); }
INLINE vec all(float x) { return _mm512_set1_ps(x); }
INLINE vec zero(void) { return _mm512_setzero_ps(); }
INLINE vec multiply_add(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vec plus(vec a, vec b) { return _mm512_add_ps(a, b); }
INLINE vec minus(vec a, vec b) { return _mm512_sub_ps(a, b); }
INLINE vec times(vec a, vec b) { return _mm512_mul_ps(a, b); }
INLINE vec over(vec a, vec b) { return _mm512_div_ps(a, b); }
INLINE vec absolute(vec a) { return _mm512_abs_ps(a); }
INLINE vec signed_as(vec a, vec b) { return _mm512_or_ps(a, _mm512_and_ps(b, all(-0.0f))); }
INLINE vec smaller(vec a, vec b) { return _mm512_min_ps(a, b); } /* b if one of them is NaN */
INLINE vec larger(vec a, vec b) { return _mm512_max_ps(a, b); } /* likewise */
INLINE vec if_more(vec a, vec b, vec yes, vec no) { return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), yes); }
INLINE vec if_nan(vec a, vec yes, vec no) { return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), yes); }
INLINE float total(vec a) { return _mm512_reduce_add_ps(a); }
INLINE ivec load_whole(const void *p) { return _mm512_loadu_si512(p); }
INLINE vec to_floats(ivec a) { return _mm512_cvtepi32_ps(a); }
#else
#define KERNELS kernels_avx2
enum { LANES = 8 };
enum { NR8 = 1, NR4 = 1, NR2 = 1, NR1 = 4 };
typedef __m256 vec;
typedef __m256i ivec;
INLINE vec load(const float *p) { return _mm256_loadu_ps(p); }
INLINE vec load_half(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE vec load_bytes(const int8_t *p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p))); }
INLINE void store(float *p, vec v) { _mm256_storeu_ps(p, v); }
INLINE void store_half(uint16_t *p, vec v) { _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v, 0)); }
INLINE vec all(float x) { return _mm256_set1_ps(x); }
INLINE vec zero(void) { return _mm256_setzero_ps(); }
INLINE vec multiply_add(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vec plus(vec a, vec b) { return _mm256_add_ps(a, b); }
INLINE vec minus(vec a, vec b) { return _mm256_sub_ps(a, b); }
INLINE vec times(vec a, vec b) { return _mm256_mul_ps(a, b); }
INLINE vec over(vec a, vec b) { return _mm256_div_ps(a, b); }
INLINE vec absolute(vec a) { return _mm256_andnot_ps(all(-0.0f), a); }
INLINE vec signed_as(vec a, vec b) { return _mm256_or_ps(a, _mm256_and_ps(b, all(-0.0f))); }
INLINE vec smaller(vec a, vec b) { return _mm256_min_ps(a, b); } /* b if one of them is NaN */
INLINE vec larger(vec a, vec b) { return _mm256_max_ps(a, b); } /* likewise */
INLINE vec if_more(vec a, vec b, vec yes, vec no) { return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
INLINE vec if_nan(vec a, vec yes, vec no) { return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, a, _CMP_UNORD_Q)); }
INLINE ivec load_whole(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE vec to_floats(ivec a) { return _mm256_cvtepi32_ps(a); }
INLINE float total(vec a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
#endif

INLINE float half_to_float(uint16_t h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }
INLINE uint16_t float_to_half(float f) { return (uint16_t)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(f), 0)); }
INLINE vec load_as(const void *p, int64_t at, const int form) {
  if (form == INT8) return load_bytes((const int8_t *)p + at);
  return form == FLOAT16 ? load_half((const uint16_t *)p + at) : load((const float *)p + at);
}

/* The totals of four vectors. */
INLINE __m128 totals(vec a, vec b, vec c, vec d) {
#ifdef __AVX512VNNI__
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
                                   _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
#else
  const __m256 half = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
#endif
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/* Asks for memory that is read soon: what is read once comes from far away, and the processor does not look beyond a page. */
INLINE void ahead(const void *p, int64_t bytes) { __builtin_prefetch((const char *)p + bytes, 0, 3); }
/*
 * The same into the second cache, for what is read in a long row: the first one can wait for some twenty lines at a time, too
 * few where memory is slow to answer.
 */
INLINE void well_ahead(const void *p, int64_t bytes) { __builtin_prefetch((const char *)p + bytes, 0, 2); }

/* exp for x <= 0, to 2 units in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]. */
INLINE vec exp_of(vec x) {
#ifdef __AVX512VNNI__
  x = larger(all(-104.0f), x); /* in this order NaN stays */
  const vec n = _mm512_roundscale_ps(_mm512_mul_ps(x, all(1.44269504f)), 8);
#else
  const vec there = _mm256_cmp_ps(x, all(-87.0f), _CMP_NLT_UQ);
  x = larger(all(-87.0f), x); /* in this order NaN stays */
  const vec n = _mm256_round_ps(_mm256_mul_ps(x, all(1.44269504f)), 8);
#endif
  const vec t = multiply_add(n, all(-1.42860677e-6f), multiply_add(n, all(-0.693145752f), x)); /* ln 2 in two parts */
  vec p = all(1.0f / 720);
  p = multiply_add(p, t, all(1.0f / 120));
  p = multiply_add(p, t, all(1.0f / 24));
  p = multiply_add(p, t, all(1.0f / 6));
  p = multiply_add(p, t, all(0.5f));
  p = multiply_add(p, t, all(1));
  p = multiply_add(p, t, all(1));
#ifdef __AVX512VNNI__
  return _mm512_scalef_ps(p, n);
#else
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_and_ps(times(p, _mm256_castsi256_ps(power)), there);
#endif
}

/* exp(x - max x) in place, zeros up to `padded`. Returns their sum. */
static float exponentials(float *x, int64_t count, int64_t padded) {
  float most = x[0];
  for (int64_t p = 1; p < count; p++) most = x[p] > most ? x[p] : most;
  for (int64_t p = count; p < padded; p++) x[p] = -__builtin_inff();
  vec sum = zero();
  for (int64_t p = 0; p < padded; p += LANES) {
    vec e = exp_of(plus(load(x + p), all(-most)));
    store(x + p, e);
    if (p + LANES > count) {
      for (int64_t i = count; i < padded; i++) x[i] = 0;
      e = load(x + p);
    }
    sum = plus(sum, e);
  }
  return total(sum);
}

#endif
