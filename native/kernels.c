/* The kernels, for the instruction set that the compiler is told: AVX-512 with VNNI, or AVX2 with FMA and F16C. */
#include "kernels.h"
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
INLINE ivec load_whole(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE vec to_floats(ivec a) { return _mm256_cvtepi32_ps(a); }
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

/* Activations that meet a vector of weights: 2 blocks or 4. */
enum { STEP = 8 * LANES };

typedef struct {
  int8_t first[4 * LANES];  /* of 4-bit weights the even elements of each block, of 8-bit ones the first half of each */
  int8_t second[4 * LANES]; /* the others */
  int32_t start[LANES];     /* minus what the weights' zero point adds to the sum of each block, in the first of its four lanes */
  float scale[LANES];       /* of each block, in its four lanes */
} Step;

/* Of each row. */
INLINE int64_t steps_of(int64_t K) { return (K + CHUNK - 1) / CHUNK * (CHUNK / STEP); }

/* Writes 32 whole numbers in the order of a step, and returns their sum; x * inverse is rounded to nearest, ties to even. */
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
INLINE void round_block(const float *x, int64_t count, int bits, int at, Step *step) {
  float padded[BLOCK];
  if (count < BLOCK) {
    for (int64_t i = 0; i < BLOCK; i++) padded[i] = i < count ? x[i] : 0;
    x = padded;
  }
  const float most = largest(x);
  const int32_t sum = put_levels(x, most != 0 ? 127.0f / most : 0, bits, step->first + 16 * at, step->second + 16 * at);
  _mm_storeu_si128((__m128i *)(step->start + 4 * at), _mm_setr_epi32(-sum * (1 << (bits - 1)), 0, 0, 0));
  _mm_storeu_ps(step->scale + 4 * at, _mm_set1_ps(most / 127.0f));
}

static void round_row(const float *x, int64_t K, int bits, Chunk *chunks) {
  Step *step = (Step *)chunks, *const end = step + steps_of(K);
  for (int64_t k = 0; step < end; k += STEP, step++) {
    for (int at = 0; at < STEP / BLOCK; at++) {
      const int64_t left = K - k - at * BLOCK;
      const int64_t count = left > BLOCK ? BLOCK : left > 0 ? left : 0;
      round_block(x + (count ? k + at * BLOCK : 0), count, bits, at, step);
    }
  }
}

/* --- products --- */

/* A step of weights, as whole numbers in the order of a step of activations. */
typedef struct {
  ivec first, second;
} Levels;

/* `bytes` of a step's weights are there; of the rest nothing is read. */
INLINE Levels levels_of(const uint8_t *w, const int bits, int64_t bytes) {
  Levels levels;
#ifdef __AVX512VNNI__
  if (bits == 4) {
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i v = bytes >= 64 ? load_whole(w) : _mm512_maskz_loadu_epi8((1ull << bytes) - 1, w);
    levels.first = _mm512_and_si512(v, low);
    levels.second = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
  } else {
    __m512i a, b;
    if (bytes >= 128) {
      a = load_whole(w), b = load_whole(w + 64);
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
  if (bits == 4) {
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i v = bytes >= 32 ? load_whole(w) : _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)w));
    levels.first = _mm256_and_si256(v, low);
    levels.second = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
  } else {
    /* The zero point is taken away at once: products of unsigned 8 bits would not fit 16 bits twice. */
    const __m256i middle = _mm256_set1_epi8((char)128);
    const __m256i a = load_whole(w), b = bytes >= 64 ? load_whole(w + 32) : middle;
    levels.first = _mm256_xor_si256(_mm256_permute2x128_si256(a, b, 0x20), middle);
    levels.second = _mm256_xor_si256(_mm256_permute2x128_si256(a, b, 0x31), middle);
  }
#endif
  return levels;
}

/* Scales of a step's blocks of 32, each in four lanes; `count` of them are there. */
INLINE vec scales_of(const float *s, const int block, int64_t count) {
#ifdef __AVX512VNNI__
  if (block == 128) return all(*s);
  if (block == 64) {
    double two = 0;
    __builtin_memcpy(&two, s, count >= 2 ? 8 : 4);
    const __m512i spread = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    return _mm512_permutexvar_ps(spread, _mm512_castpd_ps(_mm512_castpd128_pd512(_mm_set_sd(two))));
  }
  const __m128 four = count >= 4 ? _mm_loadu_ps(s) : _mm_maskz_loadu_ps((__mmask8)((1 << count) - 1), s);
  const __m512i spread = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  return _mm512_permutexvar_ps(spread, _mm512_castps128_ps512(four));
#else
  if (block > 32 || count < 2) return all(*s);
  double two;
  __builtin_memcpy(&two, s, sizeof two);
  return _mm256_permutevar_ps(_mm256_castpd_ps(_mm256_set1_pd(two)), _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
#endif
}

/* A step of activations in registers. */
typedef struct {
  ivec first, second, start;
  vec scale;
} Numbers;

INLINE Numbers numbers_of(const Step *x, const int uses) {
  Numbers numbers = {load_whole(x->first), load_whole(x->second), load_whole(x->start), load(x->scale)};
  /* Else the compiler would load them once more for each use, and loads are what limits. */
  if (uses > 1) __asm__("" : "+v"(numbers.first), "+v"(numbers.second), "+v"(numbers.start), "+v"(numbers.scale));
  return numbers;
}

INLINE vec add_product(vec sum, Levels w, vec scale, Numbers x, const int bits) {
#ifdef __AVX512VNNI__
  (void)bits;
  const __m512i dot = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(x.start, w.first, x.first), w.second, x.second);
#else
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i dot;
  if (bits == 4) {
    const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(w.first, x.first), _mm256_maddubs_epi16(w.second, x.second));
    dot = _mm256_add_epi32(_mm256_madd_epi16(pairs, ones), x.start);
  } else {
    const __m256i p = _mm256_maddubs_epi16(_mm256_abs_epi8(w.first), _mm256_sign_epi8(x.first, w.first));
    const __m256i q = _mm256_maddubs_epi16(_mm256_abs_epi8(w.second), _mm256_sign_epi8(x.second, w.second));
    dot = _mm256_add_epi32(_mm256_madd_epi16(p, ones), _mm256_madd_epi16(q, ones));
  }
#endif
  return multiply_add(to_floats(dot), times(scale, x.scale), sum);
}

/* What one step of NR outputs adds to the sums of MR rows, whose steps begin `row` from each other. */
INLINE void add_step(vec sums[4][8], const Step *x, int64_t row, const uint8_t *weights, int64_t rowBytes, int64_t bytes,
                     const float *scales, int64_t rowScales, int64_t count, const int NR, const int MR, const int bits, const int block) {
  Levels levels[4];
  vec factors[4];
  for (int j = 0; j < NR; j++) {
    ahead(weights + j * rowBytes, 4096);
    levels[j] = levels_of(weights + j * rowBytes, bits, bytes);
    factors[j] = scales_of(scales + j * rowScales, block, count);
  }
  for (int i = 0; i < MR; i++) {
    const Numbers numbers = numbers_of(x + i * row, NR);
    for (int j = 0; j < NR; j++) sums[j][i] = add_product(sums[j][i], levels[j], factors[j], numbers, bits);
  }
}

/* Once for a tile: among its sums there is no register left for this. */
static __attribute__((noinline)) void ask(Soon *soon, int64_t chunks) {
  for (int64_t i = soon->lines * chunks; i > 0; i--) {
    if (soon->at >= soon->stop) {
      if (soon->item == soon->end) {
        soon->lines = 0;
        return;
      }
      const Item *item = soon->item;
      const int64_t bytes = bytes_of(item->form);
      soon->at = soon->second ? item->b : item->a;
      soon->stop = soon->at + (soon->at ? bytes * item->rank * (soon->second ? item->outputs : soon->in) : 0);
      soon->item += soon->second;
      soon->second = !soon->second;
    }
    __builtin_prefetch(soon->at, 0, 2);
    soon->at += 64;
  }
}

/* NR outputs of MR rows. */
INLINE void tile(const Step *x, int64_t row, const Quantized *w, const float *bias, int64_t n, float *y, int64_t stride, Soon *soon,
                 const int NR, const int MR, const int bits, const int block) {
  const int64_t rowScales = (w->K + block - 1) / block, rowBytes = rowScales * block * bits / 8;
  const int64_t stepBytes = STEP * bits / 8, whole = rowBytes / stepBytes, rest = rowBytes % stepBytes;
  const uint8_t *weights = w->weights + n * rowBytes;
  const float *scales = w->scales + n * rowScales;
  for (int64_t i = 0; i < NR * rowScales; i += 16) ahead(scales + i, 4096 * 2 / block * 4);
  if (soon && soon->lines) ask(soon, steps_of(w->K) / (CHUNK / STEP));
  vec sums[4][8];
  for (int j = 0; j < NR; j++)
    for (int i = 0; i < MR; i++) sums[j][i] = zero();
  for (int64_t c = 0; c < whole; c++)
    add_step(sums, x + c, row, weights + c * stepBytes, rowBytes, stepBytes, scales + c * STEP / block, rowScales, STEP / block, NR, MR, bits,
             block);
  if (block < STEP && rest)
    add_step(sums, x + whole, row, weights + whole * stepBytes, rowBytes, rest, scales + whole * STEP / block, rowScales,
             rowScales - whole * STEP / block, NR, MR, bits, block);
  /* Four totals at a time, in one order for all, so that a number does not depend on what is computed beside it. */
  for (int t = 0; t < NR * MR; t += 4) {
    vec four[4];
    for (int k = 0; k < 4; k++) four[k] = t + k < NR * MR ? sums[(t + k) % NR][(t + k) / NR] : four[0];
    const __m128 all = totals(four[0], four[1], four[2], four[3]);
    float *target = y + t / NR * stride + n;
    if (NR == 4) {
      _mm_storeu_ps(target, bias ? _mm_add_ps(all, _mm_loadu_ps(bias + n)) : all);
    } else {
      float each[4];
      _mm_storeu_ps(each, all);
      for (int k = 0; k < 4 && t + k < NR * MR; k++) target[k / NR * stride + k % NR] = each[k] + (bias ? bias[n + k % NR] : 0);
    }
  }
}

/* Some outputs of MR rows. */
INLINE void sweep(const Step *x, int64_t row, const Quantized *w, const float *bias, int64_t from, int64_t to, float *y, int64_t stride,
                  Soon *soon, const int NR, const int MR, const int bits, const int block) {
  int64_t n = from;
  for (; n + NR <= to; n += NR) tile(x, row, w, bias, n, y, stride, soon, NR, MR, bits, block);
  for (; n < to; n++) tile(x, row, w, bias, n, y, stride, soon, 1, MR, bits, block);
}

/* Outputs whose weights stay in the cache while all rows meet them. */
enum { NEAR = 32 };

INLINE void multiply_as(const Step *x, int64_t M, const Quantized *w, const float *bias, int64_t from, int64_t to, float *y,
                        int64_t stride, Soon *soon, const int bits, const int block) {
  const int64_t row = steps_of(w->K);
  for (int64_t n = from; n < to; n += NEAR) {
    const int64_t end = n + NEAR < to ? n + NEAR : to;
    int64_t m = 0;
#define SWEEP(NR, MR) sweep(x + m * row, row, w, bias, n, end, y + m * stride, stride, soon, NR, MR, bits, block)
    for (; m + 8 <= M; m += 8) SWEEP(NR8, 8);
    if (m + 4 <= M) SWEEP(NR4, 4), m += 4;
    if (m + 2 <= M) SWEEP(NR2, 2), m += 2;
    if (m < M) SWEEP(NR1, 1);
#undef SWEEP
  }
}

static void multiply(const Chunk *chunks, int64_t M, const Quantized *w, const float *bias, int64_t from, int64_t to, float *y,
                     int64_t stride, Soon *soon) {
  const Step *x = (const Step *)chunks;
  if (w->bits == 4) {
    if (w->block == 32) multiply_as(x, M, w, bias, from, to, y, stride, soon, 4, 32);
    else if (w->block == 64) multiply_as(x, M, w, bias, from, to, y, stride, soon, 4, 64);
    else multiply_as(x, M, w, bias, from, to, y, stride, soon, 4, 128);
  } else {
    if (w->block == 32) multiply_as(x, M, w, bias, from, to, y, stride, soon, 8, 32);
    else if (w->block == 64) multiply_as(x, M, w, bias, from, to, y, stride, soon, 8, 64);
    else multiply_as(x, M, w, bias, from, to, y, stride, soon, 8, 128);
  }
}

/* --- adapters --- */

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

/* --- attention --- */

/* exp for x <= 0, to 2 units in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]. */
INLINE vec exp_of(vec x) {
#ifdef __AVX512VNNI__
  x = _mm512_max_ps(all(-104.0f), x); /* in this order NaN stays */
  const vec n = _mm512_roundscale_ps(_mm512_mul_ps(x, all(1.44269504f)), 8);
#else
  const vec there = _mm256_cmp_ps(x, all(-87.0f), _CMP_NLT_UQ);
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
  return _mm256_and_ps(times(p, _mm256_castsi256_ps(power)), there);
#endif
}

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

const Kernels KERNELS = {round_row, multiply, project, expand, change, pack, gate, add_norm, rotate, attend};
