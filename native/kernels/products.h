/* Products with weights of 4 or 8 bits: rows are rounded to 8 bits first. */
#ifndef MILORA_PRODUCTS_H
#define MILORA_PRODUCTS_H
#include "vectors.h"

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
INLINE vec scales_of(const uint16_t *s, const int block, int64_t count) {
#ifdef __AVX512VNNI__
  if (block == 128) return all(_cvtsh_ss(*s));
  if (block == 64) {
    uint32_t two = *s;
    if (count >= 2) __builtin_memcpy(&two, s, sizeof two);
    const __m512i spread = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    return _mm512_permutexvar_ps(spread, _mm512_castps128_ps512(_mm_cvtph_ps(_mm_cvtsi32_si128((int)two))));
  }
  const __m128i four = count >= 4 ? _mm_loadl_epi64((const __m128i *)s) : _mm_maskz_loadu_epi16((__mmask8)((1 << count) - 1), s);
  const __m512i spread = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  return _mm512_permutexvar_ps(spread, _mm512_castps128_ps512(_mm_cvtph_ps(four)));
#else
  if (block > 32 || count < 2) return all(_cvtsh_ss(*s));
  int32_t two;
  __builtin_memcpy(&two, s, sizeof two);
  const __m256 both = _mm256_castps128_ps256(_mm_cvtph_ps(_mm_cvtsi32_si128(two)));
  return _mm256_permutevar8x32_ps(both, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
#endif
}

/* Bytes of weights that are asked for before they are met. */
enum { AHEAD = 8192 };

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
                     const uint16_t *scales, int64_t rowScales, int64_t count, const int NR, const int MR, const int bits, const int block) {
  Levels levels[4];
  vec factors[4];
  for (int j = 0; j < NR; j++) {
    for (int i = 0; i < STEP * bits / 8; i += 64) well_ahead(weights + j * rowBytes, AHEAD + i);
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
    while (soon->next < soon->end && soon->next->at >= soon->next->stop) soon->next++;
    if (soon->next == soon->end) {
      soon->lines = 0;
      return;
    }
    well_ahead(soon->next->at, 0);
    soon->next->at += 64;
  }
}

/* NR outputs of MR rows. */
INLINE void tile(const Step *x, int64_t row, const Quantized *w, const float *bias, int64_t n, float *y, int64_t stride, Soon *soon,
                 const int NR, const int MR, const int bits, const int block) {
  const int64_t rowScales = (w->K + block - 1) / block, rowBytes = rowScales * block * bits / 8;
  const int64_t stepBytes = STEP * bits / 8, whole = rowBytes / stepBytes, rest = rowBytes % stepBytes;
  const uint8_t *weights = w->weights + n * rowBytes;
  const uint16_t *scales = w->scales + n * rowScales;
  for (int64_t i = 0; i < NR * rowScales; i += 32) well_ahead(scales + i, AHEAD * 8 / bits / block * 2);
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
#endif
