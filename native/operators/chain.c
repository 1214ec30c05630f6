/* Chain: operators one after the other, over the same rows, in one run: threads wait for each other, and not for the runtime. */
#include "operator.h"

enum { MOST_PLACES = 16 };

typedef struct {
  Kernel kernel;
  int64_t places[MOST_PLACES];
  size_t inputCount;
} Step;

typedef struct {
  int64_t count, outputs;
  Step steps[];
} Steps;

/* What a step may be, by the code in the attribute `steps`; its attributes, inputs and outputs follow the code there. */
static const Operator *const operators[] = {&linear_operator, &attention_operator, &gated_operator, &add_norm_operator};

static int64_t read_attributes(const Operator *operator, const int64_t *numbers, Kernel *kernel) {
  int64_t count = 0;
  for (const Attribute *attribute = operator->attributes; attribute->name; attribute++, count++) {
    char *place = (char *)kernel + attribute->place;
    const int64_t number = numbers[count];
    if (attribute->kind == REAL) __builtin_memcpy(place, &number, sizeof(float));
    else __builtin_memcpy(place, &number, sizeof number);
  }
  return count;
}

/* Goes through the numbers of all steps, and writes them to `all` if it is there. Returns their count, -1: not whole. */
static int64_t read_steps(Api api, const int64_t *numbers, int64_t count, Steps *all) {
  int64_t found = 0, outputs = 0;
  for (int64_t at = 0; at < count; found++) {
    const int64_t code = numbers[at++];
    if (code < 0 || code >= (int64_t)(sizeof operators / sizeof *operators)) return -1;
    const Operator *operator = operators[code];
    Step step = {.kernel = {.api = api, .operator = operator}, .inputCount = operator->inputCount};
    int64_t size = (int64_t)(operator->inputCount + operator->outputCount);
    for (const Attribute *attribute = operator->attributes; attribute->name; attribute++) size++;
    if (at + size > count) return -1;
    at += read_attributes(operator, numbers + at, &step.kernel);
    for (size_t i = 0; i < operator->inputCount + operator->outputCount; i++) {
      const int64_t place = step.places[i] = numbers[at++];
      if (is_output(place)) outputs = most(outputs, number_of(place) + 1);
    }
    if (all) all->steps[found] = step;
  }
  if (all) {
    all->count = found;
    all->outputs = outputs;
  }
  return found;
}

/* Instead of the text of the attribute. */
static OrtStatus *prepare_chain(Kernel *kernel) {
  const Api api = kernel->api;
  int64_t *numbers = kernel->text;
  const int64_t count = kernel->textBytes / 8, steps = read_steps(api, numbers, count, NULL);
  Steps *all = steps < 1 ? NULL : ort_allocate(api, sizeof(Steps) + (size_t)steps * sizeof(Step));
  if (!all) return ort_error(api, "Chain: its steps are not whole, or there is no memory for them");
  read_steps(api, numbers, count, all);
  ort_free(api, numbers);
  kernel->text = all;
  return NULL;
}

static OrtStatus *compute_chain(const Kernel *kernel, OrtContext *context) {
  const Api api = kernel->api;
  const Steps *all = kernel->text;
  const size_t count = (size_t)all->count;
  Run *runs = ort_allocate(api, count * (sizeof(Run) + MOST_STAGES * sizeof(Stage)) + (size_t)all->outputs * sizeof(void *));
  if (!runs) return ort_error(api, "Chain: no memory to compute in");
  Plan plan = {.stages = (Stage *)(runs + count)};
  void **made = (void **)(plan.stages + count * MOST_STAGES);
  /* The first step reads an input. */
  const Tensors first = {.api = api, .context = context, .places = all->steps[0].places};
  Tensors tensors = {.api = api, .context = context, .made = made, .rows = rows_of(&first, 0, kernel->K)};
  tensors.own = ort_allocate(api, 4 * (size_t)(tensors.rows * kernel->N) + 64);
  OrtStatus *status = tensors.own ? NULL : ort_error(api, "Chain: no memory to compute in");
  size_t bytes = 0;
  for (size_t i = 0; i < count && !status; i++) {
    const Step *step = all->steps + i;
    tensors.places = step->places;
    tensors.inputCount = step->inputCount;
    size_t own = 0;
    __builtin_memset(runs + i, 0, sizeof(Run));
    status = step->kernel.operator->read(&step->kernel, &tensors, runs + i, &own);
    bytes = own > bytes ? own : bytes;
  }
  /* The steps do not need it at the same time. */
  char *memory = status ? NULL : ort_allocate(api, bytes + 64);
  if (!status && !memory) status = ort_error(api, "Chain: no memory to compute in");
  if (!status) {
    for (size_t i = 0; i < count; i++) all->steps[i].kernel.operator->plan(runs + i, memory, &plan);
    run_plan(api, context, &plan);
  }
  if (memory) ort_free(api, memory);
  if (tensors.own) ort_free(api, tensors.own);
  ort_free(api, runs);
  return status;
}

/* K: columns of the first step's x; N: columns of its own memory. */
static const Attribute attributes[] = {
    ATTRIBUTE(TEXT, "steps", text), ATTRIBUTE(WHOLE, "first", K), ATTRIBUTE(WHOLE, "columns", N), {0}};
const Operator chain_operator = {
    CUSTOM_OP(), "Chain", NULL, NULL, {ANY}, 1, 1, 0, attributes, .variadic = 1, .prepare = prepare_chain, .compute = compute_chain};
