/* What milora calls of the library, and what ONNX Runtime asks of each operator. */
#include "operator.h"

const Kernels *kernels;
size_t threads = 1;

static const Operator *const all[] = {&linear_operator, &low_rank_operator, &attention_operator, &gated_operator, &add_norm_operator,
                                     &route_operator,  &widen_operator,    &narrow_operator,    &chain_operator};

static const Operator *own(const CustomOp *op) { return (const Operator *)op; }

static OrtStatus *read_text(Api api, const OrtKernelInfo *info, const char *name, Kernel *kernel) {
  size_t bytes = 0;
  OrtStatus *status = ort_attribute_bytes(api, info, name, NULL, &bytes);
  if (status) return status;
  kernel->text = ort_allocate(api, bytes);
  if (!kernel->text) return ort_error(api, "milora: no memory for an operator");
  kernel->textBytes = (int64_t)bytes - 1; /* a zero is behind it */
  return ort_attribute_bytes(api, info, name, kernel->text, &bytes);
}

OrtStatus *create(const CustomOp *op, Api api, const OrtKernelInfo *info, void **state) {
  Kernel *kernel = ort_allocate(api, sizeof(Kernel));
  if (!kernel) return ort_error(api, "milora: no memory for an operator");
  *kernel = (Kernel){.api = api, .operator = own(op)};
  OrtStatus *status = NULL;
  for (const Attribute *attribute = own(op)->attributes; attribute->name && !status; attribute++) {
    void *place = (char *)kernel + attribute->place;
    if (attribute->kind == REAL) status = ort_attribute_float(api, info, attribute->name, place);
    else if (attribute->kind == TEXT) status = read_text(api, info, attribute->name, kernel);
    else status = ort_attribute(api, info, attribute->name, place);
    if (status && attribute->kind == WHOLE_OR_ZERO) {
      ort_release_status(api, status);
      status = NULL;
    }
  }
  if (!status && own(op)->prepare) status = own(op)->prepare(kernel);
  if (status) destroy(kernel);
  else *state = kernel;
  return status;
}
void destroy(void *state) {
  Kernel *kernel = state;
  if (kernel->text) ort_free(kernel->api, kernel->text);
  ort_free(kernel->api, kernel);
}

const char *name_of(const CustomOp *op) { return own(op)->name; }
const char *provider_of(const CustomOp *op) { return (void)op, "CPUExecutionProvider"; }
int input_type(const CustomOp *op, size_t index) { return own(op)->inputs[index]; }
int input_optional(const CustomOp *op, size_t index) { return own(op)->variadic ? VARIADIC : own(op)->optional >> index & 1 ? OPTIONAL : REQUIRED; }
size_t input_count(const CustomOp *op) { return own(op)->inputCount; }
size_t output_count(const CustomOp *op) { return own(op)->outputCount; }
int output_type(const CustomOp *op, size_t index) { return (void)op, (void)index, FLOAT; }
int output_optional(const CustomOp *op, size_t index) { return (void)index, own(op)->variadic ? VARIADIC : REQUIRED; }
int memory_type(const CustomOp *op, size_t index) { return (void)op, (void)index, 0; }
int none(const CustomOp *op) { return (void)op, 0; }
int one(const CustomOp *op) { return (void)op, 1; }
int last_version(const CustomOp *op) { return (void)op, 0x7fffffff; }

#define EXPORT __attribute__((visibility("default")))

/* The i-th operator, or NULL. */
EXPORT const void *milora_operator(size_t i) { return i < sizeof all / sizeof *all ? &all[i]->op : NULL; }

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

/* What `pack` of kernels.h does, one after the other. */
typedef struct {
  const float *source;
  int64_t rows, columns, banded, form;
  void *target;
  float *ranks;
} Packing;

EXPORT void milora_pack(const Packing *packings, int64_t count) {
  for (const Packing *p = packings; p < packings + count; p++)
    kernels->pack(p->source, p->rows, p->columns, (int)p->banded, (int)p->form, p->target, p->ranks);
}
