/* What operators share: what they are made of, memory for a run, and how the runtime is told of them. */
#ifndef MILORA_OPERATOR_H
#define MILORA_OPERATOR_H
#include "../kernels.h"
#include "ort.h"

/* What is used, see `milora_start`. */
extern const Kernels *kernels;
extern size_t threads;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
/* The i-th of `parts` parts begins here; parts begin at multiples of `step`. */
static inline int64_t part(int64_t count, int64_t i, int64_t parts, int64_t step) {
  return least(count, (count * i / parts + step - 1) / step * step);
}

/* Memory for one run: of the stack if it is little, else the runtime's; NULL where there is none. */
#define STACK_BYTES 65536
#define SCRATCH(name, bytes)                                      \
  _Alignas(64) char name##_stack[STACK_BYTES];                    \
  const size_t name##_bytes = (bytes);                            \
  char *name = name##_bytes <= STACK_BYTES ? name##_stack : ort_allocate(kernel->api, name##_bytes);
#define RELEASE(name) \
  if (name != name##_stack) ort_free(kernel->api, name)

/* Fewer multiplications than this are not worth waking another thread for. */
enum { ALONE = 1 << 15 };

/* An operator of a model, with its attributes. */
typedef struct {
  Api api;
  int64_t K, N, bits, block, nextK;       /* Linear, LowRank; N of Gated, AddNorm */
  int64_t heads, keyHeads, width, window; /* Attention, and N: pairs that are rotated */
  int64_t layer, experts;                 /* Route */
  float scale;                            /* Attention; AddNorm: epsilon */
} Kernel;

/* An attribute, and where it goes. */
typedef struct {
  const char *name;
  size_t place;
  enum { WHOLE, WHOLE_OR_ZERO, REAL } kind;
} Attribute;
#define ATTRIBUTE(kind, name, member) {name, offsetof(Kernel, member), kind}

/* An operator as such. */
typedef struct {
  CustomOp op; /* first: the runtime knows no more */
  const char *name;
  int inputs[8]; /* types */
  size_t inputCount, outputCount;
  unsigned optional; /* a bit for each input */
  const Attribute *attributes; /* up to one without name */
} Operator;

OrtStatus *create(const CustomOp *op, Api api, const OrtKernelInfo *info, void **state);
void destroy(void *state);
const char *name_of(const CustomOp *op);
const char *provider_of(const CustomOp *op);
int input_type(const CustomOp *op, size_t index);
int input_optional(const CustomOp *op, size_t index);
size_t input_count(const CustomOp *op);
size_t output_count(const CustomOp *op);
int output_type(const CustomOp *op, size_t index);
int output_optional(const CustomOp *op, size_t index);
int memory_type(const CustomOp *op, size_t index);
int one(const CustomOp *op);
int last_version(const CustomOp *op);

#define CUSTOM_OP(compute, ...)                                                                                               \
  {.version = CUSTOM_OP_VERSION, .GetName = name_of, .GetExecutionProviderType = provider_of, .GetInputType = input_type,     \
   .GetInputTypeCount = input_count, .GetOutputType = output_type, .GetOutputTypeCount = output_count,                        \
   .KernelDestroy = destroy, .GetInputCharacteristic = input_optional, .GetOutputCharacteristic = output_optional,            \
   .GetInputMemoryType = memory_type, .GetVariadicInputMinArity = one, .GetVariadicInputHomogeneity = one,                    \
   .GetVariadicOutputMinArity = one, .GetVariadicOutputHomogeneity = one, .CreateKernelV2 = create,                           \
   .KernelComputeV2 = compute, .GetStartVersion = one, .GetEndVersion = last_version, __VA_ARGS__}

extern const Operator linear_operator, low_rank_operator, attention_operator, gated_operator, add_norm_operator, route_operator;

#endif
