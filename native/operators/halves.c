/* Widen and Narrow: a cache of float16, two numbers in each of its float32, for operators that know float32 alone, and back. */
#include "operator.h"

typedef struct {
  const void *from;
  void *to;
  int64_t count, parts;
} Halves;

static void widen_part(void *data, size_t t) {
  const Halves *run = data;
  const int64_t first = part(run->count, (int64_t)t, run->parts, 16), end = part(run->count, (int64_t)t + 1, run->parts, 16);
  kernels->widen((const uint16_t *)run->from + first, end - first, (float *)run->to + first);
}

static void narrow_part(void *data, size_t t) {
  const Halves *run = data;
  const int64_t first = part(run->count, (int64_t)t, run->parts, 16), end = part(run->count, (int64_t)t + 1, run->parts, 16);
  kernels->narrow((const float *)run->from + first, end - first, (uint16_t *)run->to + first);
}

/* N: numbers of a row, an even number of them. */
static OrtStatus *read_halves(const Kernel *kernel, const Tensors *tensors, Halves *run, int64_t columns, int64_t made) {
  const int64_t rows = rows_of(tensors, 0, columns), dims[2] = {rows, made};
  *run = (Halves){.from = input_of(tensors, 0, NULL), .to = output_of(tensors, 0, dims, 2), .count = rows * kernel->N};
  if (run->count && !run->to) return ort_error(kernel->api, "milora: no memory for a result");
  run->parts = run->count < ALONE ? 1 : (int64_t)threads;
  return NULL;
}
static OrtStatus *read_widen(const Kernel *kernel, const Tensors *tensors, void *run, size_t *bytes) {
  *bytes = 0;
  return read_halves(kernel, tensors, run, kernel->N / 2, kernel->N);
}
static OrtStatus *read_narrow(const Kernel *kernel, const Tensors *tensors, void *run, size_t *bytes) {
  *bytes = 0;
  return read_halves(kernel, tensors, run, kernel->N, kernel->N / 2);
}

static void plan_widen(void *data, char *memory, Plan *plan) {
  Halves *run = data;
  (void)memory;
  if (run->count) add_stage(plan, widen_part, run, run->parts);
}
static void plan_narrow(void *data, char *memory, Plan *plan) {
  Halves *run = data;
  (void)memory;
  if (run->count) add_stage(plan, narrow_part, run, run->parts);
}

_Static_assert(sizeof(Halves) <= sizeof(Run), "Halves is larger than Run");

static const Attribute attributes[] = {ATTRIBUTE(WHOLE, "N", N), {0}};
const Operator widen_operator = {CUSTOM_OP(), "Widen", read_widen, plan_widen, {FLOAT}, 1, 1, 0, attributes};
const Operator narrow_operator = {CUSTOM_OP(), "Narrow", read_narrow, plan_narrow, {FLOAT}, 1, 1, 0, attributes};
