/* Numbers: products with 4- and 8-bit weights, and what low-rank adapters add to rows. One implementation for each instruction set. */
#ifndef MILORA_KERNELS_H
#define MILORA_KERNELS_H
#include <stddef.h>
#include <stdint.h>

/* Activations are rounded to 8 bits in blocks of 32, as MatMulNBits does with accuracy level 4; four blocks are a chunk. */
enum { BLOCK = 32, CHUNK = 128 };

/* A chunk in the form that the kernels of an instruction set like. */
typedef struct {
  uint8_t bytes[256];
} Chunk;

/* Outputs of an adapter's B that lie together for all ranks. */
enum { BAND = 64 };

/* A matrix [N, K] in blocks of `block` weights, as MatMulNBits has it: unsigned, zero point in the middle. */
typedef struct {
  const uint8_t *weights;  /* [N, K / block, block * bits / 8] */
  const uint16_t *scales;  /* float16 [N, K / block] */
  int64_t N, K;
  int bits, block;
} Quantized;

/*
 * What an adapter does to outputs y [first, first + outputs) of some rows: y += gate * (t - y) with
 * t = (y + factor * (A x) B) * scale + bias. With an expert, the gate is multiplied with that of the expert, which a router
 * has chosen; nothing of an item whose gate is 0 is read.
 */
typedef struct {
  int64_t row, first, outputs, rank;
  const void *a;       /* [rank, in], or NULL */
  const void *b;       /* for each BAND outputs, of which the last may be fewer: [rank, BAND] */
  const float *scale;  /* [outputs], or NULL */
  const float *bias;   /* [outputs], or NULL */
  int64_t form;        /* what a and b are */
  double factor, gate;
  const float *ranks;  /* [rank], what A x is multiplied with, or NULL */
  int64_t rows;        /* from `row` on, at least 1 */
  int64_t expert;      /* its place among the gates of all experts, or -1 */
} Item;

/* Forms of a and b, and of keys and values. */
enum { FLOAT32, FLOAT16, INT8 };
static inline int64_t bytes_of(int64_t form) { return form == INT8 ? 1 : form == FLOAT16 ? 2 : 4; }

/* Memory that is read from beginning to end. */
typedef struct {
  const char *at, *stop;
} Stretch;

/*
 * What is read after this product, numbers of items: products are bound by arithmetic or by one long row of weights, items by
 * the many places that they begin at, which nobody foresees. `lines` are asked for with every chunk of weights.
 */
typedef struct {
  Stretch *next, *end; /* what is left */
  int lines;
} Soon;

/*
 * MiLoRA's router of a layer, for one prompt: pool its tokens, then an activation, a product with `gate`, a softmax over the
 * experts, and the `top_k` of them with the highest scores, of equal ones the first.
 */
typedef struct {
  const float *pooler;      /* [d], for SELF_ATTENTION */
  const float *numerator;   /* [7], for RATIONAL: the factors of 1, x .. x^6 */
  const float *denominator; /* [5], of x .. x^5 */
  const float *gate;        /* [experts, d]; NULL: there is no router, all is 0 */
  int64_t pooling, activation, top_k;
  int64_t weight;           /* what the gate of a chosen expert is */
  int64_t rms;              /* 1: the pooled vector is RMS-normalised */
  int64_t experts;
} Router;

enum { SELF_ATTENTION, MEAN, LAST, MAX };
enum { RATIONAL, GELU, RELU, IDENTITY };
enum { STRAIGHT_THROUGH, PROBABILITY, RENORMALIZED };

typedef struct {
  /* Rounds x [K] into ceil(K / 128) chunks. */
  void (*round)(const float *x, int64_t K, int bits, Chunk *chunks);
  /* y[m * stride + n] = x[m] . w[n] (+ bias[n]) for rows of x in chunks, and n from `from` to `to`; `soon` may be NULL. */
  void (*multiply)(const Chunk *x, int64_t M, const Quantized *w, const float *bias, int64_t from, int64_t to, float *y, int64_t stride,
                   Soon *soon);
  /* low [rows, rank] = x [rows, in] A^T, for ranks from `from` to `to`; these begin at a multiple of 4. */
  void (*project)(const Item *item, const float *x, int64_t in, int64_t rows, int64_t from, int64_t to, float *low);
  /* sums[o] = (low B)[o] of one row, for the item's outputs o from `from` to `to`. */
  void (*expand)(const Item *item, const float *low, int64_t from, int64_t to, float *sums);
  /* The rest of an item for the same outputs, with its gate; y is that of the item's row, at the item's first output. */
  void (*change)(const Item *item, double gate, const float *sums, int64_t from, int64_t to, float *y);
  /* Both for rows whose y begin `stride` from each other; `low` is NULL if A is. */
  void (*apply)(const Item *item, double gate, const float *low, int64_t rows, int64_t from, int64_t to, float *y, int64_t stride);
  /*
   * Copies source in a form: A [rank, columns] as it is or, `banded`, B [rows, rank] as an Item has it. For INT8 the numbers
   * of a rank have a scale, with which its place in `ranks` is multiplied.
   */
  void (*pack)(const float *source, int64_t rows, int64_t columns, int banded, int form, void *target, float *ranks);
  /* y [width] = silu(x [0, width)) * x [width, 2 width). */
  void (*gate)(const float *x, int64_t width, float *y);
  /* sum = x + skip and y = sum / sqrt(mean(sum^2) + eps) * weight, all [width]. */
  void (*add_norm)(const float *x, const float *skip, const float *weight, int64_t width, float eps, float *sum, float *y);
  /* Rotary position embedding of one head: the first 2 * pairs numbers, halves against each other. */
  void (*rotate)(const float *x, const float *cosine, const float *sine, int64_t pairs, int64_t width, float *y);
  /* y [heads, width] = softmax(scale q kT) v for queries [heads, width] that share keys and values [count, width], FLOAT32 or
   * FLOAT16, width a multiple of 16; `scores` has room for heads * (count + 15). */
  void (*attend)(const float *q, const void *k, const void *v, int form, int64_t heads, int64_t width, int64_t count, float scale,
                 float *scores, float *y);
  /* Copies numbers into another form: FLOAT32 of FLOAT16, or the other way. */
  void (*widen)(const uint16_t *source, int64_t count, float *target);
  void (*narrow)(const float *source, int64_t count, uint16_t *target);
  /* Gates and probabilities [experts] of a prompt whose tokens are rows of hidden [T, width]: count of them, at least one.
   * `scratch` has room for count + width + experts and 45 more. */
  void (*route)(const Router *router, const float *hidden, const int32_t *tokens, int64_t count, int64_t width, float *scratch,
                float *gates, float *probabilities);
} Kernels;

extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;

#endif
