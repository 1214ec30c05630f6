/* The kernels, for the instruction set that the compiler is told: AVX-512 with VNNI, or AVX2 with FMA and F16C. */
#include "kernels.h"
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

#ifdef __AVX512VNNI__
#define KERNELS kernels_avx512
enum { LANES = 16 };
typedef __m512 vec;
INLINE vec load(const float *p) { return _mm512_loadu_ps(p); }
INLINE vec load_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE void store(float *p, vec v) { _mm512_storeu_ps(p, v); }
INLINE void store_half(uint16_t *p, vec v) { _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, 0)); }
INLINE vec all(float x) { return _mm512_set1_ps(x); }
INLINE vec zero(void) { return _mm512_setzero_ps(); }
INLINE vec multiply_add(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vec plus(vec a, vec b) { return _mm512_add_ps(a, b); }
INLINE vec minus(vec a, vec b) { return _mm512_sub_ps(a, b); }
INLINE vec times(vec a, vec b) { return _mm512_mul_ps(a, b); }
INLINE float total(vec a) { return _mm512_reduce_add_ps(a); }
#else
#define KERNELS kernels_avx2
enum { LANES = 8 };
typedef __m256 vec;
INLINE vec load(const float *p) { return _mm256_loadu_ps(p); }
INLINE vec load_half(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE void store(float *p, vec v) { _mm256_storeu_ps(p, v); }
INLINE void store_half(uint16_t *p, vec v) { _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v, 0)); }
INLINE vec all(float x) { return _mm256_set1_ps(x); }
INLINE vec zero(void) { return _mm256_setzero_ps(); }
INLINE vec multiply_add(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vec plus(vec a, vec b) { return _mm256_add_ps(a, b); }
INLINE vec minus(vec a, vec b) { return _mm256_sub_ps(a, b); }
INLINE vec times(vec a, vec b) { return _mm256_mul_ps(a, b); }
INLINE float total(vec a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
#endif

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

/* --- activations --- */

/* Writes 32 whole numbers in the order of a chunk, and returns their sum; x * inverse is rounded to nearest, ties to even. */
INLINE int32_t put_levels(const float *x, float inverse, int bits, int8_t *first, int8_t *second) {
#ifdef __AVX512VNNI__
  const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(inverse)));
  const __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16), _mm512_set1_ps(inverse)));
  __m128i low = _mm512_cvtsepi32_epi8(a), high = _mm512_cvtsepi32_epi8(b);
  const int32_t sum = _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
#else
  const __m256 factor = _mm256_set1_ps(inverse);
  const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), factor));
  const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), factor));
  const __m256i c = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 16), factor));
  const __m256i d = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 24), factor));
  const __m256i sums = _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d));
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  const int32_t sum = _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
  /* Packing goes by halves of 128 bits: groups of four come out in the order 0 2 4 6 1 3 5 7. */
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
  const __m256i ordered = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  __m128i low = _mm256_castsi256_si128(ordered), high = _mm256_extracti128_si256(ordered, 1);
#endif
  if (bits == 4) {
    const __m128i parted = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    low = _mm_shuffle_epi8(low, parted), high = _mm_shuffle_epi8(high, parted);
    const __m128i even = _mm_unpacklo_epi64(low, high);
    high = _mm_unpackhi_epi64(low, high), low = even;
  }
  _mm_storeu_si128((__m128i *)first, low);
  _mm_storeu_si128((__m128i *)second, high);
  return sum;
}

/* The largest |x| of 32 numbers, as whole numbers, of which NaN is the largest, so that it shows in the result. */
INLINE float largest(const float *x) {
  int32_t bits;
#ifdef __AVX512VNNI__
  const __m512i mask = _mm512_set1_epi32(0x7fffffff);
  const __m512i a = _mm512_and_si512(_mm512_loadu_si512(x), mask), b = _mm512_and_si512(_mm512_loadu_si512(x + 16), mask);
  bits = _mm512_reduce_max_epi32(_mm512_max_epi32(a, b));
#else
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  __m256i most = _mm256_setzero_si256();
  for (int i = 0; i < 32; i += 8)
    most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(x + i)), mask));
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  bits = _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
#endif
  float most_of_all;
  __builtin_memcpy(&most_of_all, &bits, 4);
  return most_of_all;
}

/* `count` numbers of a block, and zeros for the rest. */
INLINE void round_block(const float *x, int64_t count, int bits, int at, Chunk *chunk) {
  float padded[BLOCK];
  if (count < BLOCK) {
    for (int64_t i = 0; i < BLOCK; i++) padded[i] = i < count ? x[i] : 0;
    x = padded;
  }
  const float most = largest(x);
  const int32_t sum = put_levels(x, most != 0 ? 127.0f / most : 0, bits, chunk->first + 16 * at, chunk->second + 16 * at);
  _mm_storeu_si128((__m128i *)(chunk->start + 4 * at), _mm_setr_epi32(-sum * (1 << (bits - 1)), 0, 0, 0));
  _mm_storeu_ps(chunk->scale + 4 * at, _mm_set1_ps(most / 127.0f));
}

static void round_row(const float *x, int64_t K, int bits, Chunk *chunks) {
  for (int64_t k = 0; k < K; k += CHUNK, chunks++) {
    for (int at = 0; at < 4; at++) {
      const int64_t left = K - k - at * BLOCK;
      const int64_t count = left > BLOCK ? BLOCK : left > 0 ? left : 0;
      round_block(x + (count ? k + at * BLOCK : 0), count, bits, at, chunks);
    }
  }
}

/* --- products --- */

/* A chunk of weights, as whole numbers in the order of a chunk of activations. */
typedef struct {
#ifdef __AVX512VNNI__
  __m512i first, second;
#else
  __m256i first[2], second[2];
#endif
} Levels;

/* `bytes` of a chunk's weights are there; of the rest nothing is read. */
INLINE Levels levels_of(const uint8_t *w, int bits, int64_t bytes) {
  Levels levels;
#ifdef __AVX512VNNI__
  if (bits == 4) {
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i v = bytes >= 64 ? _mm512_loadu_si512(w) : _mm512_maskz_loadu_epi8((1ull << bytes) - 1, w);
    levels.first = _mm512_and_si512(v, low);
    levels.second = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
  } else {
    __m512i a, b;
    if (bytes >= 128) {
      a = _mm512_loadu_si512(w), b = _mm512_loadu_si512(w + 64);
    } else {
      a = _mm512_maskz_loadu_epi8(bytes >= 64 ? ~0ull : (1ull << bytes) - 1, w);
      b = _mm512_maskz_loadu_epi8(bytes > 64 ? (1ull << (bytes - 64)) - 1 : 0, w + 64);
    }
    const __m512i even = _mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13);
    const __m512i odd = _mm512_setr_epi64(2, 3, 6, 7, 10, 11, 14, 15);
    levels.first = _mm512_permutex2var_epi64(a, even, b);
    levels.second = _mm512_permutex2var_epi64(a, odd, b);
  }
#else
  uint8_t padded[128];
  const int64_t whole = bits == 4 ? 64 : 128;
  if (bytes < whole) {
    for (int64_t i = 0; i < whole; i++) padded[i] = i < bytes ? w[i] : 0;
    w = padded;
  }
  for (int half = 0; half < 2; half++) {
    if (bits == 4) {
      const __m256i low = _mm256_set1_epi8(15);
      const __m256i v = _mm256_loadu_si256((const __m256i *)(w + 32 * half));
      levels.first[half] = _mm256_and_si256(v, low);
      levels.second[half] = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
    } else {
      const __m256i a = _mm256_loadu_si256((const __m256i *)(w + 64 * half));
      const __m256i b = _mm256_loadu_si256((const __m256i *)(w + 64 * half + 32));
      levels.first[half] = _mm256_permute2x128_si256(a, b, 0x20);
      levels.second[half] = _mm256_permute2x128_si256(a, b, 0x31);
    }
  }
#endif
  return levels;
}

/* Scales of a chunk's four blocks of 32, each in four lanes; `count` of them are there. */
typedef struct {
#ifdef __AVX512VNNI__
  __m512 lanes;
#else
  __m256 lanes[2];
#endif
} Scales;

INLINE Scales scales_of(const float *s, int block, int64_t count) {
  Scales scales;
#ifdef __AVX512VNNI__
  const __m128 four = count >= 4 ? _mm_loadu_ps(s) : _mm_maskz_loadu_ps((__mmask8)((1 << count) - 1), s);
  const __m512i spread = block == 32   ? _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)
                         : block == 64 ? _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1)
                                       : _mm512_setzero_si512();
  scales.lanes = _mm512_permutexvar_ps(spread, _mm512_castps128_ps512(four));
#else
  float four[4];
  for (int i = 0; i < 4; i++) {
    const int64_t at = block == 32 ? i : block == 64 ? i / 2 : 0;
    four[i] = at < count ? s[at] : 0;
  }
  for (int half = 0; half < 2; half++) {
    scales.lanes[half] = _mm256_setr_m128(_mm_set1_ps(four[2 * half]), _mm_set1_ps(four[2 * half + 1]));
  }
#endif
  return scales;
}

typedef struct {
#ifdef __AVX512VNNI__
  __m512 lanes;
#else
  __m256 lanes[2];
#endif
} Sum;

INLINE Sum nothing(void) {
  Sum sum;
#ifdef __AVX512VNNI__
  sum.lanes = _mm512_setzero_ps();
#else
  sum.lanes[0] = sum.lanes[1] = _mm256_setzero_ps();
#endif
  return sum;
}

/* A chunk of activations in registers. */
typedef struct {
#ifdef __AVX512VNNI__
  __m512i first, second, start;
  __m512 scale;
#else
  __m256i first[2], second[2], start[2];
  __m256 scale[2];
#endif
} Numbers;

INLINE Numbers numbers_of(const Chunk *x) {
  Numbers numbers;
#ifdef __AVX512VNNI__
  numbers.first = _mm512_loadu_si512(x->first);
  numbers.second = _mm512_loadu_si512(x->second);
  numbers.start = _mm512_loadu_si512(x->start);
  numbers.scale = _mm512_loadu_ps(x->scale);
#else
  for (int half = 0; half < 2; half++) {
    numbers.first[half] = _mm256_loadu_si256((const __m256i *)(x->first + 32 * half));
    numbers.second[half] = _mm256_loadu_si256((const __m256i *)(x->second + 32 * half));
    numbers.start[half] = _mm256_loadu_si256((const __m256i *)(x->start + 8 * half));
    numbers.scale[half] = _mm256_loadu_ps(x->scale + 8 * half);
  }
#endif
  return numbers;
}

INLINE Sum add_product(Sum sum, Levels w, Scales s, Numbers x, int bits) {
#ifdef __AVX512VNNI__
  (void)bits;
  const __m512i dot = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(x.start, w.first, x.first), w.second, x.second);
  sum.lanes = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(s.lanes, x.scale), sum.lanes);
#else
  const __m256i ones = _mm256_set1_epi16(1);
  for (int half = 0; half < 2; half++) {
    const __m256i a = x.first[half], b = x.second[half];
    __m256i dot;
    if (bits == 4) {
      const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(w.first[half], a), _mm256_maddubs_epi16(w.second[half], b));
      dot = _mm256_add_epi32(_mm256_madd_epi16(pairs, ones), x.start[half]);
    } else {
      /* Unsigned 8-bit weights times 8 bits do not fit 16 bits twice: weights lose their zero point first, then their sign. */
      const __m256i middle = _mm256_set1_epi8((char)128);
      const __m256i f = _mm256_xor_si256(w.first[half], middle), g = _mm256_xor_si256(w.second[half], middle);
      const __m256i p = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(f), _mm256_sign_epi8(a, f)), ones);
      const __m256i q = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(g), _mm256_sign_epi8(b, g)), ones);
      dot = _mm256_add_epi32(p, q);
    }
    const __m256 scale = _mm256_mul_ps(s.lanes[half], x.scale[half]);
    sum.lanes[half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, sum.lanes[half]);
  }
#endif
  return sum;
}

INLINE float total_of(Sum sum) {
#ifdef __AVX512VNNI__
  return _mm512_reduce_add_ps(sum.lanes);
#else
  return total(_mm256_add_ps(sum.lanes[0], sum.lanes[1]));
#endif
}

INLINE __m128 totals_of(const Sum *sums, int64_t step) {
#ifdef __AVX512VNNI__
  return totals(sums[0].lanes, sums[step].lanes, sums[2 * step].lanes, sums[3 * step].lanes);
#else
  __m256 v[4];
  for (int j = 0; j < 4; j++) v[j] = _mm256_add_ps(sums[j * step].lanes[0], sums[j * step].lanes[1]);
  return totals(v[0], v[1], v[2], v[3]);
#endif
}

/* NR outputs of MR rows; the first rows that meet these weights ask for the next ones. */
INLINE void tile(const Chunk *x, int64_t chunks, const Quantized *w, const float *bias, int64_t n, float *y, int64_t stride, int first,
                 const int NR, const int MR, const int bits, const int block) {
  const int64_t rowScales = (w->K + block - 1) / block, rowBytes = rowScales * block * bits / 8;
  const int64_t chunkBytes = CHUNK * bits / 8, chunkScales = CHUNK / block;
  const uint8_t *weights = w->weights + n * rowBytes;
  const float *scales = w->scales + n * rowScales;
  if (first)
    for (int64_t i = 0; i < NR * rowScales; i += 16) ahead(scales + i, 4096 * 2 / block * 4);
  Sum sums[4][4];
  for (int j = 0; j < NR; j++)
    for (int i = 0; i < MR; i++) sums[j][i] = nothing();
  for (int64_t c = 0; c < chunks; c++) {
    const int64_t left = rowBytes - c * chunkBytes, leftScales = rowScales - c * chunkScales;
    Levels levels[4];
    Scales factors[4];
    for (int j = 0; j < NR; j++) {
      const uint8_t *at = weights + j * rowBytes + c * chunkBytes;
      if (first) ahead(at, 4096);
      levels[j] = levels_of(at, bits, left);
      factors[j] = scales_of(scales + j * rowScales + c * chunkScales, block, leftScales);
    }
    for (int i = 0; i < MR; i++) {
      const Numbers numbers = numbers_of(x + i * chunks + c);
      for (int j = 0; j < NR; j++) sums[j][i] = add_product(sums[j][i], levels[j], factors[j], numbers, bits);
    }
  }
  for (int i = 0; i < MR; i++) {
    float *target = y + i * stride + n;
    if (NR == 4) {
      const __m128 four = totals_of(&sums[0][i], 4);
      _mm_storeu_ps(target, bias ? _mm_add_ps(four, _mm_loadu_ps(bias + n)) : four);
    } else {
      for (int j = 0; j < NR; j++) target[j] = total_of(sums[j][i]) + (bias ? bias[n + j] : 0);
    }
  }
}

INLINE void multiply_as(const Chunk *x, int64_t M, const Quantized *w, const float *bias, int64_t from, int64_t to, float *y, int64_t stride,
                        const int bits, const int block) {
  const int64_t chunks = (w->K + CHUNK - 1) / CHUNK;
  int64_t n = from;
  for (; n + 4 <= to; n += 4) {
    int64_t m = 0;
    for (; m + 4 <= M; m += 4) tile(x + m * chunks, chunks, w, bias, n, y + m * stride, stride, m == 0, 4, 4, bits, block);
    for (; m + 2 <= M; m += 2) tile(x + m * chunks, chunks, w, bias, n, y + m * stride, stride, m == 0, 4, 2, bits, block);
    if (m < M) tile(x + m * chunks, chunks, w, bias, n, y + m * stride, stride, m == 0, 4, 1, bits, block);
  }
  for (; n < to; n++)
    for (int64_t m = 0; m < M; m++) tile(x + m * chunks, chunks, w, bias, n, y + m * stride, stride, 0, 1, 1, bits, block);
}

static void multiply(const Chunk *x, int64_t M, const Quantized *w, const float *bias, int64_t from, int64_t to, float *y, int64_t stride) {
  if (w->bits == 4) {
    if (w->block == 32) multiply_as(x, M, w, bias, from, to, y, stride, 4, 32);
    else if (w->block == 64) multiply_as(x, M, w, bias, from, to, y, stride, 4, 64);
    else multiply_as(x, M, w, bias, from, to, y, stride, 4, 128);
  } else {
    if (w->block == 32) multiply_as(x, M, w, bias, from, to, y, stride, 8, 32);
    else if (w->block == 64) multiply_as(x, M, w, bias, from, to, y, stride, 8, 64);
    else multiply_as(x, M, w, bias, from, to, y, stride, 8, 128);
  }
}

/* --- adapters --- */

INLINE float half_to_float(uint16_t h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }
INLINE uint16_t float_to_half(float f) { return (uint16_t)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(f), 0)); }
INLINE vec load_as(const void *p, int64_t at, const int half) {
  return half ? load_half((const uint16_t *)p + at) : load((const float *)p + at);
}
INLINE float one_as(const void *p, int64_t at, const int half) {
  return half ? half_to_float(((const uint16_t *)p)[at]) : ((const float *)p)[at];
}

INLINE void project_as(const void *a, const float *x, int64_t in, int64_t from, int64_t to, float *low, const int half) {
  int64_t r = from;
  for (; r + 4 <= to; r += 4) {
    vec s0 = zero(), s1 = zero(), s2 = zero(), s3 = zero();
    int64_t i = 0;
    for (; i + LANES <= in; i += LANES) {
      const vec v = load(x + i);
      s0 = multiply_add(load_as(a, r * in + i, half), v, s0);
      s1 = multiply_add(load_as(a, (r + 1) * in + i, half), v, s1);
      s2 = multiply_add(load_as(a, (r + 2) * in + i, half), v, s2);
      s3 = multiply_add(load_as(a, (r + 3) * in + i, half), v, s3);
      if (i % 32 == 0) {
        /* The next four rows lie where these end. */
        const char *next = (const char *)a + (half ? 2 : 4) * ((r + 4) * in + 4 * i);
        for (int j = 0; j < (half ? 4 : 8); j++) ahead(next, 64 * j);
      }
    }
    float t[4];
    _mm_storeu_ps(t, totals(s0, s1, s2, s3));
    for (; i < in; i++)
      for (int j = 0; j < 4; j++) t[j] += one_as(a, (r + j) * in + i, half) * x[i];
    for (int j = 0; j < 4; j++) low[r + j] = t[j];
  }
  for (; r < to; r++) {
    vec s = zero();
    int64_t i = 0;
    for (; i + LANES <= in; i += LANES) s = multiply_add(load_as(a, r * in + i, half), load(x + i), s);
    float t = total(s);
    for (; i < in; i++) t += one_as(a, r * in + i, half) * x[i];
    low[r] = t;
  }
}

static void project(const Item *item, const float *x, int64_t in, int64_t from, int64_t to, float *low) {
  if (item->half) project_as(item->a, x, in, from, to, low, 1);
  else project_as(item->a, x, in, from, to, low, 0);
}

/* `width` outputs, at most BAND and in whole vectors but for the rest, whose sums stay in registers over all ranks. */
INLINE void expand_band(const void *b, int64_t bandWidth, int64_t rank, const float *low, int64_t width, float *target, const int half,
                        const int vectors) {
  vec sums[BAND / 8];
  for (int j = 0; j < vectors; j++) sums[j] = zero();
  for (int64_t r = 0; r < rank; r++) {
    const vec l = all(low[r]);
    for (int j = 0; j < vectors; j++) sums[j] = multiply_add(load_as(b, r * bandWidth + j * LANES, half), l, sums[j]);
    for (int j = 0; j < (half ? 2 : 4) * vectors * LANES; j += 64) ahead(b, (half ? 2 : 4) * r * bandWidth + 2048 + j);
  }
  for (int j = 0; j < vectors; j++) store(target + j * LANES, sums[j]);
  for (int64_t i = vectors * LANES; i < width; i++) {
    float sum = 0;
    for (int64_t r = 0; r < rank; r++) sum = __builtin_fmaf(one_as(b, r * bandWidth + i, half), low[r], sum);
    target[i] = sum;
  }
}

INLINE void expand_as(const Item *item, const float *low, int64_t from, int64_t to, float *sums, const int half) {
  const int64_t rank = item->rank, outputs = item->outputs;
  for (int64_t o = from, width; o < to; o += width) {
    const int64_t band = o / BAND * BAND, bandWidth = outputs - band < BAND ? outputs - band : BAND;
    width = (band + bandWidth < to ? band + bandWidth : to) - o;
    const void *b = (const char *)item->b + (half ? 2 : 4) * (band * rank + (o - band));
    if (width == BAND) expand_band(b, bandWidth, rank, low, width, sums + o, half, BAND / LANES);
    else if (width >= BAND / 2) expand_band(b, bandWidth, rank, low, width = BAND / 2, sums + o, half, BAND / 2 / LANES);
    else if (width >= LANES) expand_band(b, bandWidth, rank, low, width = LANES, sums + o, half, 1);
    else expand_band(b, bandWidth, rank, low, width, sums + o, half, 0);
  }
}

static void expand(const Item *item, const float *low, int64_t from, int64_t to, float *sums) {
  if (item->half) expand_as(item, low, from, to, sums, 1);
  else expand_as(item, low, from, to, sums, 0);
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

static void put(float value, int half, void *target, int64_t at) {
  if (half) ((uint16_t *)target)[at] = float_to_half(value);
  else ((float *)target)[at] = value;
}

static void pack(const float *source, int64_t rows, int64_t columns, int banded, int half, void *target) {
  if (!banded) {
    for (int64_t i = 0; i < rows * columns; i++) put(source[i], half, target, i);
    return;
  }
  for (int64_t band = 0; band < rows; band += BAND) {
    const int64_t width = rows - band < BAND ? rows - band : BAND;
    for (int64_t i = 0; i < width; i++)
      for (int64_t c = 0; c < columns; c++) put(source[(band + i) * columns + c], half, target, band * columns + c * width + i);
  }
}

/* --- attention --- */

/* exp for x <= 0, to 2 units in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]. */
INLINE vec exp_of(vec x) {
#ifdef __AVX512VNNI__
  const vec n = _mm512_roundscale_ps(_mm512_mul_ps(x, all(1.44269504f)), 8);
#else
  x = _mm256_max_ps(all(-87.0f), x); /* in this order NaN stays */
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
  return times(p, _mm256_castsi256_ps(power));
#endif
}

static void rotate(const float *x, const float *cosine, const float *sine, int64_t pairs, int64_t width, float *y) {
  for (int64_t i = 0; i < pairs; i++) {
    const float a = x[i], b = x[i + pairs];
    y[i] = a * cosine[i] - b * sine[i];
    y[i + pairs] = b * cosine[i] + a * sine[i];
  }
  for (int64_t i = 2 * pairs; i < width; i++) y[i] = x[i];
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

/* y [count, width] = scores [count, positions] v for up to four queries, which read v together. */
INLINE void weigh(const float *v, int64_t width, int64_t positions, const float *scores, int64_t step, const float *inverse, float *y,
                  const int count, const int vectors, int64_t i) {
  vec sums[4][4];
  for (int h = 0; h < count; h++)
    for (int j = 0; j < vectors; j++) sums[h][j] = zero();
  for (int64_t p = 0; p < positions; p++) {
    const float *at = v + p * width + i;
    for (int j = 0; j < vectors; j += 64 / 4 / LANES) ahead(at + j * LANES, 4096);
    vec own[4];
    for (int j = 0; j < vectors; j++) own[j] = load(at + j * LANES);
    for (int h = 0; h < count; h++) {
      const vec w = all(scores[h * step + p]);
      for (int j = 0; j < vectors; j++) sums[h][j] = multiply_add(own[j], w, sums[h][j]);
    }
  }
  for (int h = 0; h < count; h++)
    for (int j = 0; j < vectors; j++) store(y + h * width + i + j * LANES, times(sums[h][j], all(inverse[h])));
}

static void attend(const float *q, const float *k, const float *v, int64_t heads, int64_t width, int64_t count, float scale, float *scores,
                   float *y) {
  const int64_t step = (count + LANES - 1) / LANES * LANES;
  int64_t p = 0;
  for (; p + 4 <= count; p += 4) {
    const float *at = k + p * width;
    for (int64_t i = 0; i < 4 * width; i += 16) ahead(at + i, 4096);
    for (int64_t h = 0; h < heads; h++) {
      vec s[4] = {zero(), zero(), zero(), zero()};
      for (int64_t i = 0; i < width; i += LANES) {
        const vec own = load(q + h * width + i);
        for (int j = 0; j < 4; j++) s[j] = multiply_add(load(at + j * width + i), own, s[j]);
      }
      _mm_storeu_ps(scores + h * step + p, _mm_mul_ps(totals(s[0], s[1], s[2], s[3]), _mm_set1_ps(scale)));
    }
  }
  for (; p < count; p++) {
    for (int64_t h = 0; h < heads; h++) {
      vec s = zero();
      for (int64_t i = 0; i < width; i += LANES) s = multiply_add(load(k + p * width + i), load(q + h * width + i), s);
      scores[h * step + p] = total(s) * scale;
    }
  }
  for (int64_t i = 0; i < 1024; i += 16) ahead(v + i, 0);
  for (int64_t h = 0; h < heads; h += 4) {
    const int64_t together = heads - h < 4 ? heads - h : 4;
    float inverse[4];
    for (int64_t g = 0; g < together; g++) inverse[g] = 1 / exponentials(scores + (h + g) * step, count, step);
    for (int64_t i = 0; i < width; i += 4 * LANES) {
      const float *own = scores + h * step;
      float *target = y + h * width;
      const int wide = width - i >= 4 * LANES;
      if (wide && together == 1) weigh(v, width, count, own, step, inverse, target, 1, 4, i);
      else if (wide && together == 2) weigh(v, width, count, own, step, inverse, target, 2, 4, i);
      else if (wide && together == 3) weigh(v, width, count, own, step, inverse, target, 3, 4, i);
      else if (wide) weigh(v, width, count, own, step, inverse, target, 4, 4, i);
      else
        for (int64_t g = 0; g < together; g++)
          for (int64_t j = i; j < width; j += LANES) weigh(v, width, count, own + g * step, step, inverse + g, target + g * width, 1, 1, j);
    }
  }
}

const Kernels KERNELS = {round_row, multiply, project, expand, change, pack, rotate, attend};
