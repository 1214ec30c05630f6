/* Linear: y = x W^T + bias, then what items do to y. LowRank: what items do to a y that is another operator's. */
#include "operator.h"

typedef struct {
  const Kernel *kernel;
  const float *x, *bias, *gates;
  Chunk *chunks;
  /* For x A^T, `low` numbers for each part, with few rows for each item; for (x A^T) B of items, `outputs` numbers for each. */
  float *y, *scratch, *sums;
  Quantized w;
  int64_t M, chunksOfRow, parts, low, outputs;
  const Item *items, *next;
  int64_t count, nextCount, gateCount;
  size_t chunkBytes;
  int64_t height, begun; /* rows of a block, and blocks that are taken */
  int multiplies;
} Linear;

static double gate_of(const Linear *run, const Item *item) {
  return item->expert < 0 ? item->gate : item->gate * (double)run->gates[item->expert];
}

/* Some outputs of an item. */
typedef struct {
  int64_t from, to;
} Span;
static Span outputs_of(const Item *item, int64_t from, int64_t to) {
  return (Span){most(from, item->first) - item->first, least(to, item->first + item->outputs) - item->first};
}

/* What items do to rows [top, end), one after the other. */
static void apply_items(const Linear *run, int64_t top, int64_t end, float *low) {
  const int64_t K = run->w.K;
  for (const Item *item = run->items; item < run->items + run->count; item++) {
    const int64_t row = most(top, item->row), rows = least(end, item->row + item->rows) - row;
    const double gate = gate_of(run, item);
    if (rows <= 0 || gate == 0) continue;
    if (item->a) kernels->project(item, run->x + row * K, K, rows, 0, item->rank, low);
    kernels->apply(item, gate, item->a ? low : NULL, rows, 0, item->outputs, run->y + row * run->w.N + item->first, run->w.N);
  }
}

/* Few rows: one thread rounds them, and each takes some ranks of every item. */
static void begin_few(void *data, size_t t) {
  const Linear *run = data;
  const int64_t K = run->w.K;
  if (t == 0 && run->multiplies)
    for (int64_t m = 0; m < run->M; m++) kernels->round(run->x + m * K, K, run->w.bits, run->chunks + m * run->chunksOfRow);
  for (int64_t i = 0; i < run->count; i++) {
    const Item *item = run->items + i;
    if (!item->a || gate_of(run, item) == 0) continue;
    const int64_t from = part(item->rank, (int64_t)t, run->parts, 4), to = part(item->rank, (int64_t)t + 1, run->parts, 4);
    if (from < to) kernels->project(item, run->x + item->row * K, K, item->rows, from, to, run->scratch + i * run->low);
  }
}

/* Lines of memory asked for at a time: more would wait for each other. */
enum { MOST_LINES = 4 };

/* Stretches that a thread asks for during a product: A and B of three modules for forty rows. */
enum { MOST_STRETCHES = 128 };

static void stretch(Stretch *stretches, int *count, const void *numbers, int64_t bytes) {
  if (numbers && bytes > 0 && *count < MOST_STRETCHES) stretches[(*count)++] = (Stretch){numbers, (const char *)numbers + bytes};
}

/* `sums` that are kept at a time by the tiles of a product of `outputs` and M rows. */
static Soon soon_of(const Linear *run, Stretch *stretches, int count, int64_t outputs, int64_t sums) {
  const int64_t tiles = 1 + outputs * run->M * run->w.K / CHUNK / sums;
  int64_t lines = 0;
  for (int i = 0; i < count; i++) lines += (stretches[i].stop - stretches[i].at) / 64;
  return (Soon){stretches, stretches + count, (int)least((lines + tiles - 1) / tiles, MOST_LINES)};
}

/* What this thread reads of the items of these outputs, and of those of the next product. */
static Soon soon_of_few(const Linear *run, size_t t, int64_t from, int64_t to, Stretch *stretches) {
  int count = 0;
  for (const Item *item = run->items; item < run->items + run->count; item++) {
    const Span own = outputs_of(item, from, to);
    const int64_t bytes = bytes_of(item->form) * item->rank;
    if (item->a && gate_of(run, item) != 0) stretch(stretches, &count, (const char *)item->b + bytes * own.from, bytes * (own.to - own.from));
  }
  for (const Item *item = run->next; item < run->next + run->nextCount; item++) {
    const int64_t first = part(item->rank, (int64_t)t, run->parts, 4), end = part(item->rank, (int64_t)t + 1, run->parts, 4);
    const int64_t bytes = bytes_of(item->form) * run->kernel->nextK;
    if (item->a) stretch(stretches, &count, (const char *)item->a + bytes * first, bytes * (end - first));
  }
  return soon_of(run, stretches, count, to - from, 4 * run->M);
}

static void end_few(void *data, size_t t) {
  const Linear *run = data;
  const int64_t N = run->w.N;
  const int64_t from = part(N, (int64_t)t, run->parts, BAND), to = part(N, (int64_t)t + 1, run->parts, BAND);
  if (run->multiplies) {
    Stretch stretches[MOST_STRETCHES];
    Soon soon = soon_of_few(run, t, from, to, stretches);
    kernels->multiply(run->chunks, run->M, &run->w, run->bias, from, to, run->y, N, soon.lines ? &soon : NULL);
  }
  for (int64_t i = 0; i < run->count; i++) {
    const Item *item = run->items + i;
    const Span own = outputs_of(item, from, to);
    const double gate = gate_of(run, item);
    if (own.from >= own.to || gate == 0) continue;
    const float *low = item->a ? run->scratch + i * run->low : NULL;
    kernels->apply(item, gate, low, item->rows, own.from, own.to, run->y + item->row * N + item->first, N);
  }
}

/* Asks for the beginning of what is read next, which the kernels do only within an item. */
static inline void warm(const void *p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)p + i, 0, 3);
}

/* Rounds some rows, and reads the numbers of some items of one row from beginning to end, which is the fastest way to read them. */
static void begin_rows(void *data, size_t t) {
  const Linear *run = data;
  const int64_t K = run->w.K;
  if (run->multiplies) {
    const int64_t to = part(run->M, (int64_t)t + 1, run->parts, 1);
    for (int64_t m = part(run->M, (int64_t)t, run->parts, 1); m < to; m++)
      kernels->round(run->x + m * K, K, run->w.bits, run->chunks + m * run->chunksOfRow);
  }
  if (run->height) return;
  float *low = run->scratch + (int64_t)t * run->low;
  const int64_t to = part(run->count, (int64_t)t + 1, run->parts, 1);
  for (int64_t i = part(run->count, (int64_t)t, run->parts, 1); i < to; i++) {
    const Item *item = run->items + i;
    if (!item->a || gate_of(run, item) == 0) continue;
    if (i + 1 < to && item[1].a) warm(item[1].a, 4 * bytes_of(item[1].form) * K);
    warm(item->b, 2048);
    kernels->project(item, run->x + item->row * K, K, 1, 0, item->rank, low);
    kernels->expand(item, low, 0, item->outputs, run->sums + i * run->outputs);
  }
}

/* Rows at a time, so that their chunks stay in the cache while weights pass. */
enum { ROWS = 64 };

static void end_rows(void *data, size_t t) {
  const Linear *run = data;
  const int64_t N = run->w.N;
  const int64_t from = part(N, (int64_t)t, run->parts, BAND), to = part(N, (int64_t)t + 1, run->parts, BAND);
  if (run->multiplies) {
    /* The items that this part reads from beginning to end in the next operator. */
    Stretch stretches[MOST_STRETCHES];
    int count = 0;
    const Item *const end = run->next + part(run->nextCount, (int64_t)t + 1, run->parts, 1);
    for (const Item *item = run->next + part(run->nextCount, (int64_t)t, run->parts, 1); item < end; item++) {
      const int64_t bytes = item->a ? bytes_of(item->form) * item->rank : 0;
      stretch(stretches, &count, item->a, bytes * run->kernel->nextK);
      stretch(stretches, &count, item->b, bytes * item->outputs);
    }
    Soon soon = soon_of(run, stretches, count, to - from, 16);
    for (int64_t m = 0; m < run->M; m += ROWS)
      kernels->multiply(run->chunks + m * run->chunksOfRow, least(ROWS, run->M - m), &run->w, run->bias, from, to, run->y + m * N, N,
                        soon.lines ? &soon : NULL);
  }
  if (run->height) return;
  for (int64_t i = 0; i < run->count; i++) {
    const Item *item = run->items + i;
    const Span own = outputs_of(item, from, to);
    const double gate = gate_of(run, item);
    if (own.from < own.to && gate != 0)
      kernels->change(item, gate, run->sums + i * run->outputs, own.from, own.to, run->y + item->row * N + item->first);
  }
}

/* Items, block by block of rows: whoever is ready takes the next one. */
static void take_blocks(void *data, size_t t) {
  Linear *run = data;
  float *low = run->scratch + (int64_t)t * run->low;
  for (;;) {
    const int64_t top = __atomic_fetch_add(&run->begun, 1, __ATOMIC_RELAXED) * run->height;
    if (top >= run->M) return;
    apply_items(run, top, least(run->M, top + run->height), low);
  }
}

/* Rows of a block: at most so many that x A^T of them is little, and so few that there are blocks for all threads. */
enum { HIGH = 48, STEP_OF_ROWS = 4 };

static int is_few(const Linear *run) { return run->M < 4; }

/* Decides how it is computed; returns the bytes that it takes. */
static size_t divide(Linear *run) {
  const Quantized *w = &run->w;
  int64_t work = run->multiplies ? run->M * w->N * w->K / 8 : 0, ranks = 0;
  const int few = is_few(run);
  int wide = 0;
  for (int64_t i = 0; i < run->count; i++) {
    const Item *item = run->items + i;
    ranks = most(ranks, (item->rank + 15) / 16 * 16);
    run->outputs = most(run->outputs, (item->outputs + 15) / 16 * 16);
    if (item->a) work += item->rows * item->rank * (w->K + item->outputs);
    wide |= !few && item->rows > 1;
  }
  run->parts = work < ALONE ? 1 : (int64_t)threads;
  if (wide) {
    const int64_t share = run->M / (run->parts == 1 ? 1 : 4 * run->parts);
    run->height = least(HIGH, most(STEP_OF_ROWS, (share + STEP_OF_ROWS - 1) / STEP_OF_ROWS * STEP_OF_ROWS));
  }
  run->low = ranks * (few ? run->M : wide ? run->height : 1);
  const int64_t numbers = (few ? run->count : run->parts) * run->low + (few || wide ? 0 : run->count * run->outputs);
  run->chunkBytes = run->multiplies ? sizeof(Chunk) * (size_t)(run->M * run->chunksOfRow) : 0;
  return run->chunkBytes + 4 * (size_t)numbers;
}

static void plan_linear(void *data, char *memory, Plan *plan) {
  Linear *run = data;
  if (run->M == 0 || (!run->multiplies && run->count == 0)) return;
  run->chunks = (Chunk *)memory;
  run->scratch = (float *)(memory + run->chunkBytes);
  run->sums = run->scratch + run->parts * run->low;
  if (is_few(run)) {
    add_stage(plan, begin_few, run, run->count ? run->parts : 1);
    add_stage(plan, end_few, run, run->parts);
    return;
  }
  if (run->multiplies || !run->height) {
    add_stage(plan, begin_rows, run, run->parts);
    add_stage(plan, end_rows, run, run->parts);
  }
  if (run->height) add_stage(plan, take_blocks, run, run->parts);
}

_Static_assert(sizeof(Linear) <= sizeof(Run), "Linear is larger than Run");

/* Reads inputs of structs and numbers, where they are there. Returns whether all items are whole, and for what is there. */
static int read_items(const Tensors *tensors, Linear *run, size_t items, size_t gates) {
  enum { WIDTH = sizeof(Item) / 8 };
  int64_t numbers;
  run->items = input_of(tensors, items, &numbers);
  run->gates = input_of(tensors, gates, &run->gateCount);
  if (numbers % WIDTH) return 0;
  run->count = numbers / WIDTH;
  for (const Item *item = run->items; item < run->items + run->count; item++) {
    if (item->row < 0 || item->rows < 1 || item->row > run->M || item->rows > run->M - item->row || item->first < 0 ||
        item->first > run->w.N || item->outputs < 0 || item->outputs > run->w.N - item->first || item->rank < 0 || item->expert < -1 ||
        item->expert >= run->gateCount || item->form < FLOAT32 || item->form > INT8 || (item->a && !item->b))
      return 0;
  }
  return 1;
}

static OrtStatus *read_linear(const Kernel *kernel, const Tensors *tensors, void *data, size_t *bytes) {
  Linear *run = data;
  *run = (Linear){.kernel = kernel, .multiplies = 1, .M = rows_of(tensors, 0, kernel->K)};
  run->w = (Quantized){input_of(tensors, 1, NULL), input_of(tensors, 2, NULL), kernel->N, kernel->K, (int)kernel->bits, (int)kernel->block};
  run->x = input_of(tensors, 0, NULL);
  run->bias = input_of(tensors, 3, NULL);
  run->chunksOfRow = (kernel->K + CHUNK - 1) / CHUNK;
  *bytes = 0;
  if (!read_items(tensors, run, 4, 6))
    return ort_error(kernel->api, "Linear: an item is not whole, or for rows, outputs or a gate that are not there");
  /* Those whose memory is fetched meanwhile. */
  run->next = input_of(tensors, 5, &run->nextCount);
  run->nextCount = run->nextCount * 8 / (int64_t)sizeof(Item);
  const int64_t dims[2] = {run->M, kernel->N};
  run->y = output_of(tensors, 0, dims, 2);
  if (run->M && !run->y) return ort_error(kernel->api, "Linear: no memory for the result");
  *bytes = divide(run);
  return NULL;
}

static OrtStatus *read_low_rank(const Kernel *kernel, const Tensors *tensors, void *data, size_t *bytes) {
  Linear *run = data;
  *run = (Linear){.kernel = kernel, .M = rows_of(tensors, 1, kernel->N)};
  run->w = (Quantized){NULL, NULL, kernel->N, kernel->K, 8, 32};
  run->x = input_of(tensors, 0, NULL);
  *bytes = 0;
  if (!read_items(tensors, run, 2, 3))
    return ort_error(kernel->api, "LowRank: an item is not whole, or for rows, outputs or a gate that are not there");
  const int64_t dims[2] = {run->M, kernel->N};
  run->y = output_of(tensors, 0, dims, 2);
  if (run->M == 0) return NULL;
  if (!run->y) return ort_error(kernel->api, "LowRank: no memory for the result");
  const float *before = input_of(tensors, 1, NULL);
  if (before != run->y) __builtin_memcpy(run->y, before, 4 * (size_t)(run->M * kernel->N));
  *bytes = divide(run);
  return NULL;
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
    CUSTOM_OP(), "Linear", read_linear, plan_linear, {FLOAT, UINT8, HALF, FLOAT, INT64, INT64, FLOAT}, 7, 1, 15 << 3, linear_attributes};

static const Attribute low_rank_attributes[] = {ATTRIBUTE(WHOLE, "K", K), ATTRIBUTE(WHOLE, "N", N), {0}};
const Operator low_rank_operator = {
    CUSTOM_OP(.GetMayInplace = in_place, .ReleaseMayInplace = keep), "LowRank", read_low_rank, plan_linear, {FLOAT, FLOAT, INT64, FLOAT}, 4, 1,
    1 << 3, low_rank_attributes};
