/* A run of an operator: what it reads, the stages that threads share, and memory for it. */
#include "operator.h"

const void *input_of(const Tensors *tensors, size_t index, int64_t *count) {
  if (count) *count = 0;
  int64_t place = (int64_t)index;
  if (tensors->places) {
    place = tensors->places[index];
    if (is_own(place)) return tensors->own + number_of(place) * tensors->rows;
    if (is_output(place)) return tensors->made[number_of(place)];
    if (is_nothing(place)) return NULL;
    place = number_of(place);
  }
  const OrtValue *value = ort_input(tensors->api, tensors->context, (size_t)place);
  if (!value) return NULL;
  if (count) *count = (int64_t)ort_count(tensors->api, value);
  return !count || *count ? ort_data(tensors->api, value) : NULL;
}

int64_t rows_of(const Tensors *tensors, size_t index, int64_t columns) {
  if (tensors->places && (is_own(tensors->places[index]) || is_output(tensors->places[index]))) return tensors->rows;
  int64_t count;
  input_of(tensors, index, &count);
  return count / columns;
}

void *output_of(const Tensors *tensors, size_t index, const int64_t *dims, size_t count) {
  int64_t place = (int64_t)index;
  if (tensors->places) {
    place = tensors->places[tensors->inputCount + index];
    if (is_own(place)) return tensors->own + number_of(place) * tensors->rows;
    place = number_of(place);
  }
  void *data = ort_output(tensors->api, tensors->context, (size_t)place, dims, count);
  if (tensors->places) tensors->made[place] = data;
  return data;
}

void add_stage(Plan *plan, void (*task)(void *, size_t), void *data, int64_t parts) {
  plan->stages[plan->count++] = (Stage){.task = task, .data = data, .parts = parts};
}

/* Does the stages from `at` on that have one part; returns the first that has more, or how many there are. */
static int64_t do_alone(const Plan *plan, int64_t at) {
  for (; at < plan->count && plan->stages[at].parts == 1; at++) plan->stages[at].task(plan->stages[at].data, 0);
  return at;
}

/*
 * Looks at what another thread writes. When that takes long the other one may have no core, because something else runs on its
 * own: this one sleeps for a moment then, so that the system sees an idle core and moves the other there. (Yielding does not do
 * that: a core on which somebody waits busily is a busy one.)
 */
enum { LOOKS = 1 << 12 };
static inline void wait(int64_t looks) {
  __builtin_ia32_pause();
#if defined(__linux__) && defined(__x86_64__)
  if (looks % LOOKS == LOOKS - 1) {
    const int64_t moment[2] = {0, 20000}; /* s, ns */
    long result = 35;                     /* nanosleep */
    __asm__ volatile("syscall" : "+a"(result) : "D"(moment), "S"(NULL) : "rcx", "r11", "memory");
  }
#endif
}

/*
 * Takes parts until there are none. Whoever ends a stage opens the next: no thread waits for one that has not come, so that
 * one alone can do it all, and a late one joins where the others are.
 */
static void take_parts(void *data, size_t t) {
  (void)t;
  Plan *plan = data;
  int64_t at = __atomic_load_n(&plan->open, __ATOMIC_ACQUIRE);
  while (at < plan->count) {
    Stage *stage = plan->stages + at;
    for (;;) {
      const int64_t part = __atomic_fetch_add(&stage->taken, 1, __ATOMIC_RELAXED);
      if (part >= stage->parts) break;
      stage->task(stage->data, (size_t)part);
      if (__atomic_add_fetch(&stage->done, 1, __ATOMIC_ACQ_REL) == stage->parts)
        __atomic_store_n(&plan->open, do_alone(plan, at + 1), __ATOMIC_RELEASE);
    }
    int64_t open;
    for (int64_t looks = 0; (open = __atomic_load_n(&plan->open, __ATOMIC_ACQUIRE)) <= at; looks++) wait(looks);
    at = open;
  }
}

void run_plan(Api api, const OrtContext *context, Plan *plan) {
  plan->open = do_alone(plan, 0);
  if (plan->open < plan->count) ort_parallel(api, context, take_parts, threads, plan);
}

OrtStatus *compute(void *state, OrtContext *context) {
  const Kernel *kernel = state;
  if (kernel->operator->compute) return kernel->operator->compute(kernel, context);
  const Tensors tensors = {.api = kernel->api, .context = context};
  Run run = {0};
  Stage stages[MOST_STAGES];
  Plan plan = {.stages = stages};
  size_t bytes = 0;
  OrtStatus *status = kernel->operator->read(kernel, &tensors, &run, &bytes);
  if (status) return status;
  SCRATCH(memory, bytes);
  if (!memory) return ort_error(kernel->api, "milora: no memory to compute in");
  kernel->operator->plan(&run, memory, &plan);
  run_plan(kernel->api, context, &plan);
  RELEASE(memory);
  return NULL;
}
