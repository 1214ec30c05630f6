/* Operators for ONNX Runtime: products with quantised weights and what adapters add to them, and attention of one new token. */
#include "kernels.h"
#include "ort.h"

static const Kernels *kernels;
static size_t threads = 1;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
/* The i-th of `parts` parts begins here; parts begin at multiples of `step`. */
static inline int64_t part(int64_t count, int64_t i, int64_t parts, int64_t step) {
  return least(count, (count * i / parts + step - 1) / step * step);
}

/* Memory for one run: of the stack if it is little, else the runtime's. */
#define STACK_BYTES 65536
#define SCRATCH(name, bytes)                                      \
  _Alignas(64) char name##_stack[STACK_BYTES];                    \
  const size_t name##_bytes = (bytes);                            \
  char *name = name##_bytes <= STACK_BYTES ? name##_stack : ort_allocate(kernel->api, name##_bytes);
#define RELEASE(name) \
  if (name != name##_stack) ort_free(kernel->api, name)

typedef struct {
  Api api;
  int64_t K, N, bits, block, nextK;            /* Linear, LowRank */
  int64_t heads, keyHeads, width, window;      /* Attention */
  float scale;                                 /* Attention; AddNorm: epsilon */
} Kernel;

/* --- Linear: y = x W^T + bias, then what items do to y --- */

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

/* Fewer multiplications than this are not worth waking another thread for. */
enum { ALONE = 1 << 15 };

static void run_linear(const Kernel *kernel, const OrtContext *context, Linear *run) {
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
  run_linear(kernel, context, &run);
  return NULL;
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
  if (run.count) run_linear(kernel, context, &run);
  return NULL;
}

static size_t in_place(int **inputs, int **outputs) {
  static int input = 1, output = 0;
  *inputs = &input;
  *outputs = &output;
  return 1;
}
static void keep(int *inputs, int *outputs) { (void)inputs, (void)outputs; }

/* --- Gated, AddNorm: rows by themselves --- */

typedef struct {
  const Kernel *kernel;
  const float *x, *skip, *weight;
  float *sum, *y;
  int64_t M, parts;
} Rows;

static void gate_part(void *data, size_t t) {
  const Rows *run = data;
  const int64_t N = run->kernel->N, to = part(run->M, (int64_t)t + 1, run->parts, 1);
  for (int64_t m = part(run->M, (int64_t)t, run->parts, 1); m < to; m++) kernels->gate(run->x + m * 2 * N, N, run->y + m * N);
}

static void add_norm_part(void *data, size_t t) {
  const Rows *run = data;
  const int64_t N = run->kernel->N, to = part(run->M, (int64_t)t + 1, run->parts, 1);
  for (int64_t m = part(run->M, (int64_t)t, run->parts, 1); m < to; m++)
    kernels->add_norm(run->x + m * N, run->skip + m * N, run->weight, N, run->kernel->scale, run->sum + m * N, run->y + m * N);
}

/* Numbers that are not worth waking another thread for. */
enum { ALONE_ROWS = 1 << 14 };

static void run_rows(const Kernel *kernel, const OrtContext *context, Rows *run, void (*task)(void *, size_t)) {
  run->parts = run->M * kernel->N < ALONE_ROWS ? 1 : least((int64_t)threads, run->M);
  if (run->parts == 1) task(run, 0);
  else ort_parallel(kernel->api, context, task, (size_t)run->parts, run);
}

static OrtStatus *compute_gated(void *state, OrtContext *context) {
  const Kernel *kernel = state;
  const OrtValue *x = ort_input(kernel->api, context, 0);
  Rows run = {.kernel = kernel, .x = ort_data(kernel->api, x)};
  run.M = (int64_t)ort_count(kernel->api, x) / (2 * kernel->N);
  const int64_t dims[2] = {run.M, kernel->N};
  run.y = ort_output(kernel->api, context, 0, dims, 2);
  if (run.M == 0) return NULL;
  if (!run.y) return ort_error(kernel->api, "Gated: no memory for the result");
  run_rows(kernel, context, &run, gate_part);
  return NULL;
}

static OrtStatus *compute_add_norm(void *state, OrtContext *context) {
  const Kernel *kernel = state;
  const Api api = kernel->api;
  const OrtValue *x = ort_input(api, context, 0);
  Rows run = {.kernel = kernel, .x = ort_data(api, x), .skip = ort_data(api, ort_input(api, context, 1))};
  run.weight = ort_data(api, ort_input(api, context, 2));
  run.M = (int64_t)ort_count(api, x) / kernel->N;
  const int64_t dims[2] = {run.M, kernel->N};
  run.y = ort_output(api, context, 0, dims, 2);
  run.sum = ort_output(api, context, 1, dims, 2);
  if (run.M == 0) return NULL;
  if (!run.y || !run.sum) return ort_error(api, "AddNorm: no memory for the result");
  run_rows(kernel, context, &run, add_norm_part);
  return NULL;
}

/* --- Attention: one new token for each sequence, appended to the cache in place --- */

typedef struct {
  const Kernel *kernel;
  const float *query, *key, *value, *cosine, *sine;
  int64_t queryStep, keyStep; /* from one sequence to the next */
  float *keys, *values, *y, *scratch;
  const int32_t *last;
  int64_t B, S, pairs, scratchOfPart, parts;
} Attention;

/* Some of the groups of heads that share keys and values, over all sequences. */
static void attend_part(void *data, size_t t) {
  const Attention *run = data;
  const Kernel *kernel = run->kernel;
  const int64_t width = kernel->width, keyHeads = kernel->keyHeads, group = kernel->heads / keyHeads;
  float *q = run->scratch + (int64_t)t * run->scratchOfPart, *scores = q + group * width;
  const int64_t to = part(run->B * keyHeads, (int64_t)t + 1, run->parts, 1);
  for (int64_t u = part(run->B * keyHeads, (int64_t)t, run->parts, 1); u < to; u++) {
    const int64_t b = u / keyHeads, h = u % keyHeads, position = run->last[b];
    float *keys = run->keys + (b * keyHeads + h) * run->S * width, *values = run->values + (b * keyHeads + h) * run->S * width;
    const float *own = run->query + b * run->queryStep + h * group * width;
    const float *cosine = run->cosine + position * run->pairs, *sine = run->sine + position * run->pairs;
    for (int64_t i = 0; i < group; i++) kernels->rotate(own + i * width, cosine, sine, run->pairs, width, q + i * width);
    kernels->rotate(run->key + b * run->keyStep + h * width, cosine, sine, run->pairs, width, keys + position * width);
    __builtin_memcpy(values + position * width, run->value + b * run->keyStep + h * width, 4 * (size_t)width);
    const int64_t first = kernel->window > 0 ? most(0, position + 1 - kernel->window) : 0;
    kernels->attend(q, keys + first * width, values + first * width, group, width, position + 1 - first, kernel->scale, scores,
                    run->y + (b * kernel->heads + h * group) * width);
  }
}

static OrtStatus *compute_attention(void *state, OrtContext *context) {
  const Kernel *kernel = state;
  const Api api = kernel->api;
  const int64_t width = kernel->width, keyHeads = kernel->keyHeads, group = kernel->heads / keyHeads;
  const OrtValue *query = ort_input(api, context, 0), *key = ort_input(api, context, 1), *value = ort_input(api, context, 2);
  const OrtValue *pastKey = ort_input(api, context, 3), *cosine = ort_input(api, context, 6);
  Attention run = {.kernel = kernel, .query = ort_data(api, query), .queryStep = kernel->heads * width, .keyStep = keyHeads * width};
  if (key && value) {
    run.key = ort_data(api, key);
    run.value = ort_data(api, value);
  } else { /* all three lie together for each sequence */
    run.key = run.query + run.queryStep;
    run.value = run.key + run.keyStep;
    run.queryStep = run.keyStep = run.queryStep + 2 * run.keyStep;
  }
  run.last = ort_data(api, ort_input(api, context, 5));
  run.B = (int64_t)ort_count(api, query) / run.queryStep;
  run.S = run.B ? (int64_t)ort_count(api, pastKey) / (run.B * keyHeads * width) : 0;
  run.pairs = kernel->N; /* numbers of a row of cosine */
  const int64_t positions = run.pairs ? least(run.S, (int64_t)ort_count(api, cosine) / run.pairs) : run.S;
  int64_t longest = 0;
  for (int64_t b = 0; b < run.B; b++) {
    if (run.last[b] < 0 || run.last[b] >= positions) return ort_error(api, "Attention: a position is outside of the cache");
    longest = most(longest, run.last[b] + 1);
  }
  run.cosine = ort_data(api, cosine);
  run.sine = ort_data(api, ort_input(api, context, 7));
  const int64_t dims[3] = {run.B, 1, kernel->heads * width}, cache[4] = {run.B, keyHeads, run.S, width};
  run.y = ort_output(api, context, 0, dims, 3);
  run.keys = ort_output(api, context, 1, cache, 4);
  run.values = ort_output(api, context, 2, cache, 4);
  if (run.B == 0) return NULL;
  if (!run.y || !run.keys || !run.values) return ort_error(api, "Attention: no memory for the result");
  const float *keysBefore = ort_data(api, pastKey), *valuesBefore = ort_data(api, ort_input(api, context, 4));
  const size_t bytes = 4 * (size_t)(run.B * keyHeads * run.S * width);
  if (keysBefore != run.keys) __builtin_memcpy(run.keys, keysBefore, bytes);
  if (valuesBefore != run.values) __builtin_memcpy(run.values, valuesBefore, bytes);
  run.parts = run.B * kernel->heads * width * longest < ALONE ? 1 : least((int64_t)threads, run.B * keyHeads);
  run.scratchOfPart = group * (width + (longest + 15) / 16 * 16) + 16;
  SCRATCH(scratch, 4 * (size_t)(run.scratchOfPart * run.parts));
  run.scratch = (float *)scratch;
  if (run.parts == 1) attend_part(&run, 0);
  else ort_parallel(api, context, attend_part, (size_t)run.parts, &run);
  RELEASE(scratch);
  return NULL;
}

/* --- what the runtime is told --- */

static OrtStatus *read(Api api, const OrtKernelInfo *info, const char *const *names, int64_t *const *values) {
  for (; *names; names++, values++) {
    OrtStatus *status = ort_attribute(api, info, *names, *values);
    if (status) return status;
  }
  return NULL;
}

static Kernel *new_kernel(Api api) {
  Kernel *kernel = ort_allocate(api, sizeof(Kernel));
  if (kernel) *kernel = (Kernel){.api = api};
  return kernel;
}

static OrtStatus *create_linear(const CustomOp *op, Api api, const OrtKernelInfo *info, void **state) {
  (void)op;
  Kernel *kernel = *state = new_kernel(api);
  ort_optional(api, info, "next_K", &kernel->nextK);
  return read(api, info, (const char *const[]){"K", "N", "bits", "block_size", NULL},
              (int64_t *const[]){&kernel->K, &kernel->N, &kernel->bits, &kernel->block});
}
static OrtStatus *create_low_rank(const CustomOp *op, Api api, const OrtKernelInfo *info, void **state) {
  (void)op;
  Kernel *kernel = *state = new_kernel(api);
  return read(api, info, (const char *const[]){"K", "N", NULL}, (int64_t *const[]){&kernel->K, &kernel->N});
}
static OrtStatus *create_attention(const CustomOp *op, Api api, const OrtKernelInfo *info, void **state) {
  (void)op;
  Kernel *kernel = *state = new_kernel(api);
  OrtStatus *status = ort_attribute_float(api, info, "scale", &kernel->scale);
  if (status) return status;
  return read(api, info, (const char *const[]){"num_heads", "kv_num_heads", "head_dim", "rotary_pairs", "local_window_size", NULL},
              (int64_t *const[]){&kernel->heads, &kernel->keyHeads, &kernel->width, &kernel->N, &kernel->window});
}
static OrtStatus *create_gated(const CustomOp *op, Api api, const OrtKernelInfo *info, void **state) {
  (void)op;
  Kernel *kernel = *state = new_kernel(api);
  return ort_attribute(api, info, "N", &kernel->N);
}
static OrtStatus *create_add_norm(const CustomOp *op, Api api, const OrtKernelInfo *info, void **state) {
  (void)op;
  Kernel *kernel = *state = new_kernel(api);
  OrtStatus *status = ort_attribute(api, info, "N", &kernel->N);
  return status ? status : ort_attribute_float(api, info, "epsilon", &kernel->scale);
}
static void destroy(void *state) { ort_free(((Kernel *)state)->api, state); }

static const char *provider(const CustomOp *op) { return (void)op, "CPUExecutionProvider"; }
static int cpu_memory(const CustomOp *op, size_t index) { return (void)op, (void)index, 0; }
static int one(const CustomOp *op) { return (void)op, 1; }
static int last_version(const CustomOp *op) { return (void)op, 0x7fffffff; }
static int required(const CustomOp *op, size_t index) { return (void)op, (void)index, REQUIRED; }
static int float_output(const CustomOp *op, size_t index) { return (void)op, (void)index, FLOAT; }
static size_t one_output(const CustomOp *op) { return (void)op, 1; }
static size_t two_outputs(const CustomOp *op) { return (void)op, 2; }
static size_t three_outputs(const CustomOp *op) { return (void)op, 3; }

static const char *linear_name(const CustomOp *op) { return (void)op, "Linear"; }
static size_t linear_inputs(const CustomOp *op) { return (void)op, 6; }
static int linear_input(const CustomOp *op, size_t index) { return (void)op, (const int[]){FLOAT, UINT8, FLOAT, FLOAT, INT64, INT64}[index]; }
static int linear_optional(const CustomOp *op, size_t index) { return (void)op, index < 3 ? REQUIRED : OPTIONAL; }

static const char *low_rank_name(const CustomOp *op) { return (void)op, "LowRank"; }
static size_t low_rank_inputs(const CustomOp *op) { return (void)op, 3; }
static int low_rank_input(const CustomOp *op, size_t index) { return (void)op, index < 2 ? FLOAT : INT64; }

static const char *gated_name(const CustomOp *op) { return (void)op, "Gated"; }
static size_t gated_inputs(const CustomOp *op) { return (void)op, 1; }
static const char *add_norm_name(const CustomOp *op) { return (void)op, "AddNorm"; }
static size_t add_norm_inputs(const CustomOp *op) { return (void)op, 3; }
static int float_input(const CustomOp *op, size_t index) { return (void)op, (void)index, FLOAT; }
#define gated_input float_input
#define add_norm_input float_input

static const char *attention_name(const CustomOp *op) { return (void)op, "Attention"; }
static size_t attention_inputs(const CustomOp *op) { return (void)op, 8; }
static int attention_optional(const CustomOp *op, size_t index) { return (void)op, index == 1 || index == 2 ? OPTIONAL : REQUIRED; }
static int attention_input(const CustomOp *op, size_t index) { return (void)op, index == 5 ? INT32 : FLOAT; }

#define OP(prefix, outputs, optional, ...)                                                                                       \
  {.version = CUSTOM_OP_VERSION, .GetName = prefix##_name, .GetExecutionProviderType = provider, .GetInputType = prefix##_input, \
   .GetInputTypeCount = prefix##_inputs, .GetOutputType = float_output, .GetOutputTypeCount = outputs,                           \
   .KernelDestroy = destroy, .GetInputCharacteristic = optional, .GetOutputCharacteristic = required,                            \
   .GetInputMemoryType = cpu_memory, .GetVariadicInputMinArity = one, .GetVariadicInputHomogeneity = one,                        \
   .GetVariadicOutputMinArity = one, .GetVariadicOutputHomogeneity = one, .CreateKernelV2 = create_##prefix,                     \
   .KernelComputeV2 = compute_##prefix, .GetStartVersion = one, .GetEndVersion = last_version, __VA_ARGS__}

static const CustomOp ops[] = {
    OP(linear, one_output, linear_optional),
    OP(low_rank, one_output, required, .GetMayInplace = in_place, .ReleaseMayInplace = keep),
    OP(gated, one_output, required),
    OP(add_norm, two_outputs, required),
    OP(attention, three_outputs, attention_optional),
};

#define EXPORT __attribute__((visibility("default")))

/* The i-th operator, or NULL. */
EXPORT const void *milora_operator(size_t i) { return i < sizeof ops / sizeof *ops ? &ops[i] : NULL; }

/* The instruction set that is used from now on, with so many threads and registers of at most so many bits; NULL: this
 * processor has none of them. */
EXPORT const char *milora_start(size_t count, int bits) {
  threads = count ? count : 1;
  __builtin_cpu_init();
  if (bits >= 512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni")) {
    kernels = &kernels_avx512;
    return "avx512";
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    kernels = &kernels_avx2; /* whoever has these has F16C */
    return "avx2";
  }
  return NULL;
}

/*
 * Asks Linux for large pages under memory that is read as a whole, over and over: a processor knows the places of few
 * pages at a time. Memory smaller than such a page is left alone. By the system call itself: there is no C library here.
 */
EXPORT void milora_use_large_pages(char *memory, size_t bytes) {
#if defined(__linux__) && defined(__x86_64__)
  const uintptr_t page = 1 << 21, from = ((uintptr_t)memory + page - 1) & ~(page - 1), to = ((uintptr_t)memory + bytes) & ~(page - 1);
  if (from >= to) return;
  long result = 28; /* madvise */
  register long advice __asm__("rdx") = 14; /* MADV_HUGEPAGE */
  __asm__ volatile("syscall" : "+a"(result) : "D"(from), "S"(to - from), "r"(advice) : "rcx", "r11", "memory");
#else
  (void)memory, (void)bytes;
#endif
}

/* See `pack` of kernels.h. */
EXPORT void milora_pack(const float *source, int64_t rows, int64_t columns, int banded, int form, void *target, float *ranks) {
  kernels->pack(source, rows, columns, banded, form, target, ranks);
}
