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

static const Attribute gated_attributes[] = {ATTRIBUTE(WHOLE, "N", N), {0}};
const Operator gated_operator = {CUSTOM_OP(compute_gated), "Gated", {FLOAT}, 1, 1, 0, gated_attributes};

static const Attribute add_norm_attributes[] = {ATTRIBUTE(WHOLE, "N", N), ATTRIBUTE(REAL, "epsilon", scale), {0}};
const Operator add_norm_operator = {CUSTOM_OP(compute_add_norm), "AddNorm", {FLOAT, FLOAT, FLOAT}, 3, 2, 0, add_norm_attributes};
