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

/* Fewer multiplications than this are not worth waking another thread for. */
enum { ALONE = 1 << 15 };

/* Where the tensors of an operator are: those of its node, or `places` of a step of a chain, see chain.c. */
typedef struct {
  Api api;
  OrtContext *context;
  const int64_t *places; /* inputs, then outputs; NULL: those of the node */
  size_t inputCount;
  void **made; /* outputs of the chain that are there */
  float *own;  /* memory of the chain, in which a matrix of `rows` rows begins at a multiple of its rows */
  int64_t rows;
} Tensors;

/* A place is of a kind: nothing, an input or an output of the chain, or columns of its own memory. */
static inline int64_t number_of(int64_t place) { return place & (((int64_t)1 << 40) - 1); }
static inline int is_nothing(int64_t place) { return place >> 40 == 0; }
static inline int is_output(int64_t place) { return place >> 40 == 2; }
static inline int is_own(int64_t place) { return place >> 40 == 3; }

/* NULL where an optional input is not there. `count` may be NULL; it is of no use for what a chain has in its own memory. */
const void *input_of(const Tensors *tensors, size_t index, int64_t *count);
/* Rows of an input of so many columns. */
int64_t rows_of(const Tensors *tensors, size_t index, int64_t columns);
void *output_of(const Tensors *tensors, size_t index, const int64_t *dims, size_t count);

/* Work in parts that threads share. */
typedef struct {
  void (*task)(void *, size_t);
  void *data;
  int64_t parts, taken, done;
} Stage;

/* Stages, of which each begins when the one before has ended. */
typedef struct {
  Stage *stages;
  int64_t count;
  int64_t open; /* the stage that is worked at */
} Plan;

/* Of one operator. */
enum { MOST_STAGES = 4 };

void add_stage(Plan *plan, void (*task)(void *, size_t), void *data, int64_t parts);
void run_plan(Api api, const OrtContext *context, Plan *plan);

/* Memory for one run: of the stack if it is little, else the runtime's; NULL where there is none. */
#define STACK_BYTES 65536
#define SCRATCH(name, bytes)                                      \
  _Alignas(64) char name##_stack[STACK_BYTES];                    \
  const size_t name##_bytes = (bytes);                            \
  char *name = name##_bytes <= STACK_BYTES ? name##_stack : ort_allocate(kernel->api, name##_bytes);
#define RELEASE(name) \
  if (name != name##_stack) ort_free(kernel->api, name)

/* What an operator knows of a run; each has a struct of its own for it. */
typedef struct {
  _Alignas(16) char bytes[256];
} Run;

typedef struct Operator Operator;

/* An operator of a model, with its attributes. */
typedef struct {
  Api api;
  const Operator *operator;
  void *text;                             /* Chain: steps */
  int64_t textBytes;
  int64_t K, N, bits, block, nextK;       /* Linear, LowRank; N of Gated, AddNorm */
  int64_t heads, keyHeads, width, window; /* Attention, and N: pairs that are rotated */
  int64_t halves;                         /* Attention: the cache is float16, two numbers in each of its float32 */
  int64_t layer, experts;                 /* Route */
  float scale;                            /* Attention; AddNorm: epsilon */
} Kernel;

/* An attribute, and where it goes. */
typedef struct {
  const char *name;
  size_t place;
  enum { WHOLE, WHOLE_OR_ZERO, REAL, TEXT } kind;
} Attribute;
#define ATTRIBUTE(kind, name, member) {name, offsetof(Kernel, member), kind}

/* An operator as such. */
struct Operator {
  CustomOp op; /* first: the runtime knows no more */
  const char *name;
  /* Reads the inputs and makes the outputs; `bytes` is how much memory the run takes. Nothing is computed. */
  OrtStatus *(*read)(const Kernel *kernel, const Tensors *tensors, void *run, size_t *bytes);
  /* Adds the stages of a run, which outlives them and its memory. */
  void (*plan)(void *run, char *memory, Plan *plan);
  int inputs[8]; /* types */
  size_t inputCount, outputCount;
  unsigned optional; /* a bit for each input */
  const Attribute *attributes; /* up to one without name */
  int variadic; /* any number of inputs and of outputs */
  /* May be NULL: what is done when attributes have been read, and instead of `read` and `plan`. */
  OrtStatus *(*prepare)(Kernel *kernel);
  OrtStatus *(*compute)(const Kernel *kernel, OrtContext *context);
};

OrtStatus *compute(void *state, OrtContext *context);
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
int none(const CustomOp *op);
int one(const CustomOp *op);
int last_version(const CustomOp *op);

#define CUSTOM_OP(...)                                                                                                        \
  {.version = CUSTOM_OP_VERSION, .GetName = name_of, .GetExecutionProviderType = provider_of, .GetInputType = input_type,     \
   .GetInputTypeCount = input_count, .GetOutputType = output_type, .GetOutputTypeCount = output_count,                        \
   .KernelDestroy = destroy, .GetInputCharacteristic = input_optional, .GetOutputCharacteristic = output_optional,            \
   .GetInputMemoryType = memory_type, .GetVariadicInputMinArity = one, .GetVariadicInputHomogeneity = none,                   \
   .GetVariadicOutputMinArity = one, .GetVariadicOutputHomogeneity = one, .CreateKernelV2 = create,                           \
   .KernelComputeV2 = compute, .GetStartVersion = one, .GetEndVersion = last_version, __VA_ARGS__}

extern const Operator linear_operator, low_rank_operator, attention_operator, gated_operator, add_norm_operator, route_operator, widen_operator,
    narrow_operator, chain_operator;

#endif
