/* Gated and AddNorm, which change each row by itself. */
#include "operator.h"

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

static OrtStatus *read_rows(const Kernel *kernel, const Tensors *tensors, Rows *run) {
  run->kernel = kernel;
  run->x = input_of(tensors, 0, NULL);
  const int64_t dims[2] = {run->M, kernel->N};
  run->y = output_of(tensors, 0, dims, 2);
  run->parts = run->M * kernel->N < ALONE_ROWS ? 1 : least((int64_t)threads, run->M);
  return run->M && !run->y ? ort_error(kernel->api, "milora: no memory for the rows of a result") : NULL;
}

static OrtStatus *read_gated(const Kernel *kernel, const Tensors *tensors, void *data, size_t *bytes) {
  Rows *run = data;
  *bytes = 0;
  run->M = rows_of(tensors, 0, 2 * kernel->N);
  return read_rows(kernel, tensors, run);
}

static void plan_gated(void *data, char *memory, Plan *plan) {
  (void)memory;
  const Rows *run = data;
  if (run->M) add_stage(plan, gate_part, data, run->parts);
}

static OrtStatus *read_add_norm(const Kernel *kernel, const Tensors *tensors, void *data, size_t *bytes) {
  Rows *run = data;
  *bytes = 0;
  run->M = rows_of(tensors, 0, kernel->N);
  run->skip = input_of(tensors, 1, NULL);
  run->weight = input_of(tensors, 2, NULL);
  const int64_t dims[2] = {run->M, kernel->N};
  run->sum = output_of(tensors, 1, dims, 2);
  if (run->M && !run->sum) return ort_error(kernel->api, "AddNorm: no memory for the sum");
  return read_rows(kernel, tensors, run);
}

static void plan_add_norm(void *data, char *memory, Plan *plan) {
  (void)memory;
  const Rows *run = data;
  if (run->M) add_stage(plan, add_norm_part, data, run->parts);
}

_Static_assert(sizeof(Rows) <= sizeof(Run), "Rows is larger than Run");

static const Attribute gated_attributes[] = {ATTRIBUTE(WHOLE, "N", N), {0}};
const Operator gated_operator = {CUSTOM_OP(), "Gated", read_gated, plan_gated, {FLOAT}, 1, 1, 0, gated_attributes};

static const Attribute add_norm_attributes[] = {ATTRIBUTE(WHOLE, "N", N), ATTRIBUTE(REAL, "epsilon", scale), {0}};
const Operator add_norm_operator = {
    CUSTOM_OP(), "AddNorm", read_add_norm, plan_add_norm, {FLOAT, FLOAT, FLOAT}, 3, 2, 0, add_norm_attributes};
