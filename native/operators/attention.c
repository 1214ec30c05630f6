/* Attention: the new tokens of each sequence, as many for one as for another, appended to the cache in place. */
#include "operator.h"

typedef struct {
  const Kernel *kernel;
  const float *query, *key, *value, *cosine, *sine;
  int64_t queryStep, keyStep; /* from one token to the next */
  char *keys, *values; /* of `bytes` each number */
  float *y, *scratch;
  const int32_t *last; /* where the last token of each sequence stands */
  int64_t B, T, S, pairs, scratchOfPart, parts, units, splits, appends; /* heads that share keys are split in so many */
  int64_t bytes;
} Attention;

/* Tokens of a sequence that are computed by one thread, one after the other. */
enum { TOKENS = 16 };

static int64_t position_of(const Attention *run, int64_t row) { return run->last[row / run->T] - run->T + 1 + row % run->T; }

/* Features of a head whose cache is float16. */
enum { WIDEST = 1024 };

/* New keys and values of some of the tokens. */
static void append_part(void *data, size_t t) {
  const Attention *run = data;
  const int64_t width = run->kernel->width, keyHeads = run->kernel->keyHeads, rows = run->B * run->T;
  const int64_t to = part(rows, (int64_t)t + 1, run->appends, 1);
  for (int64_t r = part(rows, (int64_t)t, run->appends, 1); r < to; r++) {
    const int64_t b = r / run->T, position = position_of(run, r);
    const float *cosine = run->cosine + position * run->pairs, *sine = run->sine + position * run->pairs;
    for (int64_t h = 0; h < keyHeads; h++) {
      const int64_t place = ((b * keyHeads + h) * run->S + position) * width * run->bytes;
      const float *key = run->key + r * run->keyStep + h * width, *value = run->value + r * run->keyStep + h * width;
      if (run->bytes == 2) {
        float turned[WIDEST];
        kernels->rotate(key, cosine, sine, run->pairs, width, turned);
        kernels->narrow(turned, width, (uint16_t *)(run->keys + place));
        kernels->narrow(value, width, (uint16_t *)(run->values + place));
      } else {
        kernels->rotate(key, cosine, sine, run->pairs, width, (float *)(run->keys + place));
        __builtin_memcpy(run->values + place, value, 4 * (size_t)width);
      }
    }
  }
}

/*
 * Some of the units: a group of heads that share keys and values, or a part of these, for some tokens of a sequence. They go
 * round the parts: later tokens have more before them.
 */
static void attend_part(void *data, size_t t) {
  const Attention *run = data;
  const Kernel *kernel = run->kernel;
  const int64_t width = kernel->width, keyHeads = kernel->keyHeads, group = kernel->heads / keyHeads, blocks = (run->T + TOKENS - 1) / TOKENS;
  float *q = run->scratch + (int64_t)t * run->scratchOfPart, *scores = q + group * width;
  for (int64_t u = (int64_t)t; u < run->units; u += run->parts) {
    const int64_t split = u % run->splits, h = u / run->splits % keyHeads, block = u / run->splits / keyHeads % blocks;
    const int64_t b = u / run->splits / keyHeads / blocks;
    const int64_t from = part(group, split, run->splits, 1), heads = part(group, split + 1, run->splits, 1) - from;
    const int64_t before = (b * keyHeads + h) * run->S;
    const int64_t to = b * run->T + least(run->T, (block + 1) * TOKENS);
    for (int64_t r = b * run->T + block * TOKENS; r < to; r++) {
      const int64_t position = position_of(run, r);
      const float *own = run->query + r * run->queryStep + (h * group + from) * width;
      const float *cosine = run->cosine + position * run->pairs, *sine = run->sine + position * run->pairs;
      for (int64_t i = 0; i < heads; i++) kernels->rotate(own + i * width, cosine, sine, run->pairs, width, q + i * width);
      const int64_t first = kernel->window > 0 ? most(0, position + 1 - kernel->window) : 0;
      const int64_t place = (before + first) * width * run->bytes;
      kernels->attend(q, run->keys + place, run->values + place, run->bytes == 2 ? FLOAT16 : FLOAT32, heads, width, position + 1 - first,
                      kernel->scale, scores, run->y + (r * kernel->heads + h * group + from) * width);
    }
  }
}

/* So many units for each thread share the work evenly; more would read keys and values more often. */
enum { UNITS = 4 };

static OrtStatus *read_attention(const Kernel *kernel, const Tensors *tensors, void *data, size_t *bytes) {
  Attention *run = data;
  const Api api = kernel->api;
  const int64_t width = kernel->width, keyHeads = kernel->keyHeads, group = kernel->heads / keyHeads;
  run->kernel = kernel;
  run->query = input_of(tensors, 0, NULL);
  run->key = input_of(tensors, 1, NULL);
  run->value = input_of(tensors, 2, NULL);
  run->queryStep = kernel->heads * width;
  run->keyStep = keyHeads * width;
  if (!run->key || !run->value) { /* all three lie together for each token */
    run->key = run->query + run->queryStep;
    run->value = run->key + run->keyStep;
    run->queryStep = run->keyStep = run->queryStep + 2 * run->keyStep;
  }
  int64_t numbers, cosines;
  const void *keysBefore = input_of(tensors, 3, &numbers), *valuesBefore = input_of(tensors, 4, NULL);
  run->last = input_of(tensors, 5, &run->B);
  run->cosine = input_of(tensors, 6, &cosines);
  run->sine = input_of(tensors, 7, NULL);
  const int64_t rows = rows_of(tensors, 0, run->queryStep);
  if (run->B ? rows % run->B != 0 : rows > 0) return ort_error(api, "Attention: sequences differ in how many tokens are new");
  run->T = run->B ? rows / run->B : 0;
  const int64_t wide = kernel->halves ? width / 2 : width; /* numbers of a position, as the cache is declared */
  if (kernel->halves && (width % 2 || width > WIDEST)) return ort_error(api, "Attention: heads of so many features are not held in float16");
  run->bytes = kernel->halves ? 2 : 4;
  run->S = run->B ? numbers / (run->B * keyHeads * wide) : 0;
  run->pairs = kernel->N; /* numbers of a row of cosine */
  const int64_t positions = run->pairs ? least(run->S, cosines / run->pairs) : run->S;
  int64_t longest = 0;
  for (int64_t b = 0; b < run->B; b++) {
    if (run->last[b] < run->T - 1 || run->last[b] >= positions) return ort_error(api, "Attention: a position is outside of the cache");
    longest = most(longest, run->last[b] + 1);
  }
  const int64_t dims[3] = {run->B, run->T, kernel->heads * width}, cache[4] = {run->B, keyHeads, run->S, wide};
  run->y = output_of(tensors, 0, dims, 3);
  run->keys = output_of(tensors, 1, cache, 4);
  run->values = output_of(tensors, 2, cache, 4);
  *bytes = 0;
  if (rows == 0) return NULL;
  if (!run->y || !run->keys || !run->values) return ort_error(api, "Attention: no memory for the result");
  const size_t held = 4 * (size_t)(run->B * keyHeads * run->S * wide);
  if (keysBefore != run->keys) __builtin_memcpy(run->keys, keysBefore, held);
  if (valuesBefore != run->values) __builtin_memcpy(run->values, valuesBefore, held);
  const int alone = rows * kernel->heads * width * longest < ALONE || threads == 1;
  const int64_t blocks = (run->T + TOKENS - 1) / TOKENS, groups = run->B * blocks * keyHeads;
  run->splits = alone ? 1 : most(1, least(group, UNITS * (int64_t)threads / groups));
  run->units = groups * run->splits;
  run->parts = alone ? 1 : least((run->T > 1 ? 4 : 2) * (int64_t)threads, run->units);
  run->appends = rows * keyHeads * width < ALONE / 4 ? 1 : least((int64_t)threads, rows);
  run->scratchOfPart = group * (width + (longest + 15) / 16 * 16) + 16;
  *bytes = 4 * (size_t)(run->scratchOfPart * run->parts);
  return NULL;
}

static void plan_attention(void *data, char *memory, Plan *plan) {
  Attention *run = data;
  run->scratch = (float *)memory;
  if (run->B * run->T == 0) return;
  add_stage(plan, append_part, run, run->appends);
  add_stage(plan, attend_part, run, run->parts);
}

_Static_assert(sizeof(Attention) <= sizeof(Run), "Attention is larger than Run");

static const Attribute attributes[] = {ATTRIBUTE(WHOLE, "num_heads", heads), ATTRIBUTE(WHOLE, "kv_num_heads", keyHeads),
                                       ATTRIBUTE(WHOLE, "head_dim", width), ATTRIBUTE(WHOLE, "rotary_pairs", N),
                                       ATTRIBUTE(WHOLE, "local_window_size", window), ATTRIBUTE(REAL, "scale", scale),
                                       ATTRIBUTE(WHOLE_OR_ZERO, "halves", halves), {0}};
const Operator attention_operator = {
    CUSTOM_OP(), "Attention", read_attention, plan_attention, {FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, INT32, FLOAT, FLOAT}, 8, 3, 1 << 1 | 1 << 2, attributes};
