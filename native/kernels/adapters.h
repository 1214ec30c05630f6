/* What low-rank adapters add to rows, and the copies of their numbers that this reads. */
#ifndef MILORA_ADAPTERS_H
#define MILORA_ADAPTERS_H
#include "vectors.h"

INLINE float one_as(const void *p, int64_t at, const int form) {
  if (form == INT8) return ((const int8_t *)p)[at];
  return form == FLOAT16 ? half_to_float(((const uint16_t *)p)[at]) : ((const float *)p)[at];
}

/* Rows at a time, and the ranks or vectors of outputs that they meet: as many sums as the registers hold. */
enum { HEIGHT = 4, TILE = LANES == 16 ? 4 : 2 };

/*
 * NR ranks from `r` on of MR rows, of which `rows` are there: the others are the last one again, and are not kept. The sum of
 * a row is made in the same order whatever it is beside.
 */
INLINE void project_tile(const void *a, const float *x, int64_t in, int64_t rows, int64_t r, int64_t rank, float *low, const int form,
                         const int MR, const int NR) {
  const float *own[HEIGHT];
  vec sums[HEIGHT][4];
  for (int k = 0; k < MR; k++) {
    own[k] = x + (k < rows ? k : rows - 1) * in;
    for (int j = 0; j < 4; j++) sums[k][j] = zero();
  }
  int64_t i = 0;
  for (; i + LANES <= in; i += LANES) {
    vec v[HEIGHT];
    for (int k = 0; k < MR; k++) v[k] = load(own[k] + i);
    for (int j = 0; j < NR; j++) {
      const vec factor = load_as(a, (r + j) * in + i, form);
      for (int k = 0; k < MR; k++) sums[k][j] = multiply_add(factor, v[k], sums[k][j]);
    }
    if (MR == 1 && NR == 4 && i % 32 == 0) {
      /* The next four rows of A lie where these end. */
      const char *next = (const char *)a + bytes_of(form) * ((r + 4) * in + 4 * i);
      for (int j = 0; j < 2 * bytes_of(form); j++) ahead(next, 64 * j);
    }
  }
  for (int k = 0; k < MR && k < rows; k++) {
    float t[4];
    _mm_storeu_ps(t, totals(sums[k][0], sums[k][1], sums[k][2], sums[k][3]));
    for (int64_t l = i; l < in; l++)
      for (int j = 0; j < NR; j++) t[j] += one_as(a, (r + j) * in + l, form) * own[k][l];
    for (int j = 0; j < NR; j++) low[k * rank + r + j] = t[j];
  }
}

INLINE void project_as(const Item *item, const float *x, int64_t in, int64_t rows, int64_t from, int64_t to, float *low, const int form) {
  const int64_t rank = item->rank;
  for (int64_t m = 0; m < rows; m += HEIGHT) {
    const int64_t left = rows - m;
    int64_t r = from;
    if (left == 1) {
      for (; r + 4 <= to; r += 4) project_tile(item->a, x + m * in, in, 1, r, rank, low + m * rank, form, 1, 4);
      for (; r < to; r++) project_tile(item->a, x + m * in, in, 1, r, rank, low + m * rank, form, 1, 1);
    } else {
      for (; r + TILE <= to; r += TILE) project_tile(item->a, x + m * in, in, left, r, rank, low + m * rank, form, HEIGHT, TILE);
      for (; r < to; r++) project_tile(item->a, x + m * in, in, left, r, rank, low + m * rank, form, HEIGHT, 1);
    }
  }
}

static void project(const Item *item, const float *x, int64_t in, int64_t rows, int64_t from, int64_t to, float *low) {
  if (item->form == FLOAT16) project_as(item, x, in, rows, from, to, low, FLOAT16);
  else if (item->form == INT8) project_as(item, x, in, rows, from, to, low, INT8);
  else project_as(item, x, in, rows, from, to, low, FLOAT32);
  if (item->ranks)
    for (int64_t m = 0; m < rows; m++)
      for (int64_t r = from; r < to; r++) low[m * item->rank + r] *= item->ranks[r];
}

/* What an item does with a sum: y = y + gate * ((y + factor * sum) * scale + bias - y). */
typedef struct {
  const float *scale, *bias;
  float factor, gate;
  int adds, whole;
} Change;

INLINE Change change_of(const Item *item, double gate) {
  const int linear = !item->scale && !item->bias;
  return (Change){.scale = item->scale, .bias = item->bias, .factor = (float)(linear ? item->factor * gate : item->factor),
                  .gate = (float)gate, .adds = item->a != NULL, .whole = linear || gate == 1};
}

INLINE vec changed(const Change *c, int64_t o, vec sum, vec before) {
  vec t = c->adds ? multiply_add(sum, all(c->factor), before) : before;
  if (c->scale) t = times(t, load(c->scale + o));
  if (c->bias) t = plus(t, load(c->bias + o));
  return c->whole ? t : multiply_add(minus(t, before), all(c->gate), before);
}

INLINE float changed_one(const Change *c, int64_t o, float sum, float before) {
  float t = c->adds ? __builtin_fmaf(sum, c->factor, before) : before;
  if (c->scale) t *= c->scale[o];
  if (c->bias) t += c->bias[o];
  return c->whole ? t : __builtin_fmaf(t - before, c->gate, before);
}

/*
 * NV vectors of outputs from `o` on of MR rows, of which `rows` are there; b is what a band has for them. The sums of all ranks
 * stay in registers; they go to y or, without a change, are y.
 */
INLINE void expand_tile(const void *b, int64_t bandWidth, int64_t rank, const float *low, int64_t rows, int64_t o, const Change *change,
                        float *y, int64_t stride, const int form, const int MR, const int NV) {
  const float *own[HEIGHT];
  vec sums[HEIGHT][BAND / 8];
  for (int k = 0; k < MR; k++) {
    own[k] = low + (k < rows ? k : rows - 1) * rank;
    for (int j = 0; j < NV; j++) sums[k][j] = zero();
  }
  for (int64_t r = 0; r < rank; r++) {
    vec factors[BAND / 8];
    for (int j = 0; j < NV; j++) factors[j] = load_as(b, r * bandWidth + j * LANES, form);
    for (int k = 0; k < MR; k++) {
      const vec l = all(own[k][r]);
      for (int j = 0; j < NV; j++) sums[k][j] = multiply_add(factors[j], l, sums[k][j]);
    }
    if (MR == 1)
      for (int j = 0; j < bytes_of(form) * NV * LANES; j += 64) ahead(b, bytes_of(form) * r * bandWidth + 2048 + j);
  }
  for (int k = 0; k < MR && k < rows; k++) {
    for (int j = 0; j < NV; j++) {
      float *target = y + k * stride + o + j * LANES;
      store(target, change ? changed(change, o + j * LANES, sums[k][j], load(target)) : sums[k][j]);
    }
  }
}

INLINE void expand_rest(const void *b, int64_t bandWidth, int64_t rank, const float *low, int64_t rows, int64_t o, int64_t width,
                        const Change *change, float *y, int64_t stride, const int form) {
  for (int64_t m = 0; m < rows; m++) {
    for (int64_t i = 0; i < width; i++) {
      float sum = 0, *target = y + m * stride + o + i;
      for (int64_t r = 0; r < rank; r++) sum = __builtin_fmaf(one_as(b, r * bandWidth + i, form), low[m * rank + r], sum);
      *target = change ? changed_one(change, o + i, sum, *target) : sum;
    }
  }
}

INLINE void expand_as(const Item *item, const float *low, int64_t rows, int64_t from, int64_t to, const Change *change, float *y,
                      int64_t stride, const int form) {
  const int64_t rank = item->rank, outputs = item->outputs;
  for (int64_t o = from, width; o < to; o += width) {
    const int64_t band = o / BAND * BAND, bandWidth = outputs - band < BAND ? outputs - band : BAND;
    const int64_t room = (band + bandWidth < to ? band + bandWidth : to) - o;
    const void *b = (const char *)item->b + bytes_of(form) * (band * rank + (o - band));
#define TILE_OF(MR, NV) expand_tile(b, bandWidth, rank, low + m * rank, rows - m, o, change, y + m * stride, stride, form, MR, NV)
    int64_t m = 0;
    if (room < LANES) {
      expand_rest(b, bandWidth, rank, low, rows, o, width = room, change, y, stride, form);
    } else if (rows == 1) {
      if (room == BAND) TILE_OF(1, BAND / LANES), width = BAND;
      else if (room >= BAND / 2) TILE_OF(1, BAND / 2 / LANES), width = BAND / 2;
      else TILE_OF(1, 1), width = LANES;
    } else if (room >= TILE * LANES) {
      for (width = TILE * LANES; m < rows; m += HEIGHT) TILE_OF(HEIGHT, TILE);
    } else {
      for (width = LANES; m < rows; m += HEIGHT) TILE_OF(HEIGHT, 1);
    }
#undef TILE_OF
  }
}

INLINE void expand_rows(const Item *item, const float *low, int64_t rows, int64_t from, int64_t to, const Change *change, float *y,
                        int64_t stride) {
  if (item->form == FLOAT16) expand_as(item, low, rows, from, to, change, y, stride, FLOAT16);
  else if (item->form == INT8) expand_as(item, low, rows, from, to, change, y, stride, INT8);
  else expand_as(item, low, rows, from, to, change, y, stride, FLOAT32);
}

static void expand(const Item *item, const float *low, int64_t from, int64_t to, float *sums) {
  expand_rows(item, low, 1, from, to, NULL, sums, 0);
}

static void change(const Item *item, double gate, const float *sums, int64_t from, int64_t to, float *y) {
  const Change c = change_of(item, gate);
  int64_t o = from;
  for (; o + LANES <= to; o += LANES) store(y + o, changed(&c, o, c.adds ? load(sums + o) : zero(), load(y + o)));
  for (; o < to; o++) y[o] = changed_one(&c, o, c.adds ? sums[o] : 0, y[o]);
}

static void apply(const Item *item, double gate, const float *low, int64_t rows, int64_t from, int64_t to, float *y, int64_t stride) {
  const Change c = change_of(item, gate);
  if (low) expand_rows(item, low, rows, from, to, &c, y, stride);
  else
    for (int64_t m = 0; m < rows; m++) change(item, gate, NULL, from, to, y + m * stride);
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

/* Of a number without its sign: as whole numbers these are in the order of the numbers, and NaN is above all. */
INLINE uint32_t bits_of(float number) {
  uint32_t bits;
  __builtin_memcpy(&bits, &number, sizeof bits);
  return bits & 0x7fffffff;
}

/* The scale of numbers of which the largest has these bits, which goes to `*rank`; returns what they are to be multiplied with. */
static float scale_of(uint32_t bits, float *rank) {
  float most;
  __builtin_memcpy(&most, &bits, sizeof most);
  *rank *= most / 127;
  return most > 0 ? 127 / most : 0;
}

static void pack_ranks(const float *source, int64_t rows, int64_t columns, int form, void *target, float *ranks) {
  for (int64_t r = 0; r < rows; r++) {
    const float *row = source + r * columns;
    uint32_t most = 0;
    if (form == INT8)
      for (int64_t c = 0; c < columns; c++) most = bits_of(row[c]) > most ? bits_of(row[c]) : most;
    copy_as(row, columns, form, form == INT8 ? scale_of(most, ranks + r) : 0, target, r * columns);
  }
}

/* Ranks that are looked at together, a cache line of each row. */
enum { RANKS = 16 };

static void pack_bands(const float *source, int64_t rows, int64_t columns, int form, void *target, float *ranks) {
  for (int64_t first = 0; first < columns; first += RANKS) {
    const int64_t count = columns - first < RANKS ? columns - first : RANKS;
    uint32_t most[RANKS] = {0};
    float inverses[RANKS] = {0};
    if (form == INT8) {
      for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < count; c++) {
          const uint32_t bits = bits_of(source[r * columns + first + c]);
          most[c] = bits > most[c] ? bits : most[c];
        }
      for (int64_t c = 0; c < count; c++) inverses[c] = scale_of(most[c], ranks + first + c);
    }
    for (int64_t band = 0; band < rows; band += BAND) {
      const int64_t width = rows - band < BAND ? rows - band : BAND;
      for (int64_t c = 0; c < count; c++) {
        float one[BAND];
        for (int64_t i = 0; i < width; i++) one[i] = source[(band + i) * columns + first + c];
        copy_as(one, width, form, inverses[c], target, band * columns + (first + c) * width);
      }
    }
  }
}

static void pack(const float *source, int64_t rows, int64_t columns, int banded, int form, void *target, float *ranks) {
  (banded ? pack_bands : pack_ranks)(source, rows, columns, form, target, ranks);
}
#endif
