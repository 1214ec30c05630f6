/* Linear: y = x W^T + bias, then what items do to y. LowRank: what items do to a y that is another operator's. */
#include "operator.h"

typedef struct {
  const Kernel *kernel;
  const float *x, *bias;
  Chunk *chunks;
  /* For x A^T of an item, `ranks` numbers for each part, and for (x A^T) B of items, `outputs` numbers for each. */
  float *y, *scratch, *sums;
  Quantized w;
  int64_t M, chunksOfRow, parts, ranks, outputs, scratchOfPart;
  const Item *items, *next;
  int64_t count, nextCount;
  int multiplies;
} Linear;

/* Asks for the beginning of what is read next, which the kernels do only within an item. */
static inline void warm(const void *p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)p + i, 0, 3);
}

static void change_part(const Linear *run, int64_t i, int64_t from, int64_t to, const float *sums) {
  const Item *item = run->items + i;
  const int64_t a = most(from, item->first) - item->first, b = least(to, item->first + item->outputs) - item->first;
  if (a < b) kernels->change(item, sums, a, b, run->y + item->row * run->w.N + item->first);
}

/* All of it for some outputs. Few rows have few items: whoever needs x A^T computes it. */
static void few_rows(void *data, size_t t) {
  const Linear *run = data;
  const int64_t N = run->w.N;
  const int64_t from = part(N, (int64_t)t, run->parts, BAND), to = part(N, (int64_t)t + 1, run->parts, BAND);
  if (run->multiplies) kernels->multiply(run->chunks, run->M, &run->w, run->bias, from, to, run->y, N, NULL);
  float *low = run->scratch + (int64_t)t * run->scratchOfPart, *sums = low + run->ranks;
  for (int64_t i = 0; i < run->count; i++) {
    const Item *item = run->items + i;
    const int64_t a = most(from, item->first) - item->first, b = least(to, item->first + item->outputs) - item->first;
    if (a >= b) continue;
    if (item->a) {
      kernels->project(item, run->x + item->row * run->w.K, run->w.K, 0, item->rank, low);
      kernels->expand(item, low, a, b, sums);
    }
    change_part(run, i, from, to, sums);
  }
}

/* Rounds some rows, and reads the numbers of some items from beginning to end, which is the fastest way to read them. */
static void begin_rows(void *data, size_t t) {
  const Linear *run = data;
  const int64_t K = run->w.K;
  if (run->multiplies) {
    const int64_t to = part(run->M, (int64_t)t + 1, run->parts, 1);
    for (int64_t m = part(run->M, (int64_t)t, run->parts, 1); m < to; m++)
      kernels->round(run->x + m * K, K, run->w.bits, run->chunks + m * run->chunksOfRow);
  }
  float *low = run->scratch + (int64_t)t * run->ranks;
  const int64_t to = part(run->count, (int64_t)t + 1, run->parts, 1);
  for (int64_t i = part(run->count, (int64_t)t, run->parts, 1); i < to; i++) {
    const Item *item = run->items + i;
    if (!item->a) continue;
    if (i + 1 < to && item[1].a) warm(item[1].a, 4 * bytes_of(item[1].form) * K);
    warm(item->b, 2048);
    kernels->project(item, run->x + item->row * K, K, 0, item->rank, low);
    kernels->expand(item, low, 0, item->outputs, run->sums + i * run->outputs);
  }
}

/* Lines of memory asked for at a time: more would wait for each other. */
enum { MOST_LINES = 4 };

/* Rows at a time, so that their chunks stay in the cache while weights pass. */
enum { ROWS = 64 };

static void end_rows(void *data, size_t t) {
  const Linear *run = data;
  const int64_t N = run->w.N;
  const int64_t from = part(N, (int64_t)t, run->parts, BAND), to = part(N, (int64_t)t + 1, run->parts, BAND);
  if (run->multiplies) {
    /* The items that this part reads from beginning to end in the next operator. */
    Soon soon = {.item = run->next + part(run->nextCount, (int64_t)t, run->parts, 1), .in = run->kernel->nextK};
    soon.end = run->next + part(run->nextCount, (int64_t)t + 1, run->parts, 1);
    int64_t lines = 0;
    for (const Item *item = soon.item; item < soon.end; item++)
      if (item->a) lines += item->rank * (soon.in + item->outputs) * bytes_of(item->form) / 64;
    const int64_t steps = 1 + (to - from) * run->M * run->w.K / CHUNK / 16; /* tiles have 16 sums */
    soon.lines = (int)least((lines + steps - 1) / steps, MOST_LINES);
    for (int64_t m = 0; m < run->M; m += ROWS)
      kernels->multiply(run->chunks + m * run->chunksOfRow, least(ROWS, run->M - m), &run->w, run->bias, from, to, run->y + m * N, N,
                        soon.lines ? &soon : NULL);
  }
  for (int64_t i = 0; i < run->count; i++) change_part(run, i, from, to, run->sums + i * run->outputs);
}

static OrtStatus *run_linear(const Kernel *kernel, const OrtContext *context, Linear *run) {
  const Quantized *w = &run->w;
  int64_t work = run->multiplies ? run->M * w->N * w->K / 8 : 0;
  for (int64_t i = 0; i < run->count; i++) {
    const Item *item = run->items + i;
    run->ranks = most(run->ranks, (item->rank + 15) / 16 * 16);
    run->outputs = most(run->outputs, (item->outputs + 15) / 16 * 16);
    if (item->a) work += item->rank * (w->K + item->outputs);
  }
  run->parts = work < ALONE ? 1 : (int64_t)threads;
  const int few = run->M < 4;
  run->scratchOfPart = run->ranks + run->outputs;
  const size_t chunkBytes = run->multiplies ? sizeof(Chunk) * (size_t)(run->M * run->chunksOfRow) : 0;
  const int64_t numbers = few ? run->parts * run->scratchOfPart : run->parts * run->ranks + run->count * run->outputs;
  SCRATCH(scratch, chunkBytes + 4 * (size_t)numbers);
  if (!scratch) return ort_error(kernel->api, "Linear: no memory to compute in");
  run->chunks = (Chunk *)scratch;
  run->scratch = (float *)(scratch + chunkBytes);
  run->sums = run->scratch + run->parts * run->ranks;
  if (few) {
    if (run->multiplies)
      for (int64_t m = 0; m < run->M; m++) kernels->round(run->x + m * w->K, w->K, w->bits, run->chunks + m * run->chunksOfRow);
    if (run->parts == 1) few_rows(run, 0);
    else ort_parallel(kernel->api, context, few_rows, (size_t)run->parts, run);
  } else if (run->parts == 1) {
    begin_rows(run, 0);
    end_rows(run, 0);
  } else {
    ort_parallel(kernel->api, context, begin_rows, (size_t)run->parts, run);
    ort_parallel(kernel->api, context, end_rows, (size_t)run->parts, run);
  }
  RELEASE(scratch);
  return NULL;
}

static int64_t read_items(const OrtContext *context, Api api, size_t index, const Item **items) {
  const OrtValue *value = ort_input(api, context, index);
  const int64_t count = value ? (int64_t)(ort_count(api, value) * 8 / sizeof(Item)) : 0;
  if (count) *items = ort_data(api, value);
  return count;
}

/* Whether each item is of a row and outputs that are there. */
static int items_fit(const Linear *run) {
  for (int64_t i = 0; i < run->count; i++) {
    const Item *item = run->items + i;
    if (item->row < 0 || item->row >= run->M || item->first < 0 || item->first > run->w.N || item->outputs < 0 ||
        item->outputs > run->w.N - item->first || item->rank < 0)
      return 0;
  }
  return 1;
}

static OrtStatus *compute_linear(void *state, OrtContext *context) {
  const Kernel *kernel = state;
  const Api api = kernel->api;
  const OrtValue *x = ort_input(api, context, 0), *bias = ort_input(api, context, 3);
  Linear run = {.kernel = kernel, .multiplies = 1};
  run.w = (Quantized){ort_data(api, ort_input(api, context, 1)), ort_data(api, ort_input(api, context, 2)), kernel->N, kernel->K,
                      (int)kernel->bits, (int)kernel->block};
  run.x = ort_data(api, x);
  run.M = (int64_t)ort_count(api, x) / kernel->K;
  run.bias = bias ? ort_data(api, bias) : NULL;
  run.chunksOfRow = (kernel->K + CHUNK - 1) / CHUNK;
  run.count = read_items(context, api, 4, &run.items);
  run.nextCount = read_items(context, api, 5, &run.next);
  if (!items_fit(&run)) return ort_error(api, "Linear: an item is for a row or outputs that are not there");
  const int64_t dims[2] = {run.M, kernel->N};
  run.y = ort_output(api, context, 0, dims, 2);
  if (run.M == 0) return NULL;
  if (!run.y) return ort_error(api, "Linear: no memory for the result");
  return run_linear(kernel, context, &run);
}

/* --- LowRank: what items do to y, where the product is another operator's --- */

static OrtStatus *compute_low_rank(void *state, OrtContext *context) {
  const Kernel *kernel = state;
  const Api api = kernel->api;
  const OrtValue *y = ort_input(api, context, 1);
  Linear run = {.kernel = kernel};
  run.w = (Quantized){NULL, NULL, kernel->N, kernel->K, 8, 32};
  run.x = ort_data(api, ort_input(api, context, 0));
  run.M = (int64_t)ort_count(api, y) / kernel->N;
  run.count = read_items(context, api, 2, &run.items);
  if (!items_fit(&run)) return ort_error(api, "LowRank: an item is for a row or outputs that are not there");
  const int64_t dims[2] = {run.M, kernel->N};
  run.y = ort_output(api, context, 0, dims, 2);
  if (run.M == 0) return NULL;
  if (!run.y) return ort_error(api, "LowRank: no memory for the result");
  const float *before = ort_data(api, y);
  if (before != run.y) __builtin_memcpy(run.y, before, 4 * (size_t)(run.M * kernel->N));
  return run.count ? run_linear(kernel, context, &run) : NULL;
}

static size_t in_place(int **inputs, int **outputs) {
  static int input = 1, output = 0;
  *inputs = &input;
  *outputs = &output;
  return 1;
}
static void keep(int *inputs, int *outputs) { (void)inputs, (void)outputs; }

static const Attribute linear_attributes[] = {ATTRIBUTE(WHOLE, "K", K), ATTRIBUTE(WHOLE, "N", N), ATTRIBUTE(WHOLE, "bits", bits),
                                              ATTRIBUTE(WHOLE, "block_size", block), ATTRIBUTE(WHOLE_OR_ZERO, "next_K", nextK), {0}};
const Operator linear_operator = {
    CUSTOM_OP(compute_linear), "Linear", {FLOAT, UINT8, FLOAT, FLOAT, INT64, INT64}, 6, 1, 1 << 3 | 1 << 4 | 1 << 5, linear_attributes};

static const Attribute low_rank_attributes[] = {ATTRIBUTE(WHOLE, "K", K), ATTRIBUTE(WHOLE, "N", N), {0}};
const Operator low_rank_operator = {
    CUSTOM_OP(compute_low_rank, .GetMayInplace = in_place, .ReleaseMayInplace = keep), "LowRank", {FLOAT, FLOAT, INT64}, 3, 1, 0,
    low_rank_attributes};
