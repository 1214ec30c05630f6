/* Route: the routers of a layer, for prompts that may each have an adapter of its own. */
#include "operator.h"

typedef struct {
  const Kernel *kernel;
  const float *hidden, *mask;
  const Router *routers; /* of the layer */
  int64_t B, T, d, parts, scratchOfPart;
  float *gates, *probabilities, *scratch;
} Route;

/* Some of the prompts. */
static void route_part(void *data, size_t t) {
  const Route *run = data;
  const int64_t T = run->T, E = run->kernel->experts;
  float *scratch = run->scratch + (int64_t)t * run->scratchOfPart;
  int32_t *tokens = (int32_t *)scratch;
  const int64_t to = part(run->B, (int64_t)t + 1, run->parts, 1);
  for (int64_t b = part(run->B, (int64_t)t, run->parts, 1); b < to; b++) {
    const Router *router = run->routers + b;
    float *gates = run->gates + b * E, *probabilities = run->probabilities + b * E;
    for (int64_t e = router->gate ? router->experts : 0; e < E; e++) gates[e] = probabilities[e] = 0;
    if (!router->gate) continue;
    int64_t count = 0;
    for (int64_t i = 0; i < T; i++)
      if (run->mask[b * T + i] != 0) tokens[count++] = (int32_t)i;
    if (count == 0) /* all are */
      for (; count < T; count++) tokens[count] = (int32_t)count;
    kernels->route(router, run->hidden + b * T * run->d, tokens, count, run->d, scratch + T, gates, probabilities);
  }
}

static int is_sound(const Router *router, int64_t experts) {
  if (!router->gate) return 1;
  return router->pooling >= SELF_ATTENTION && router->pooling <= MAX && router->activation >= RATIONAL &&
         router->activation <= IDENTITY && router->weight >= STRAIGHT_THROUGH && router->weight <= RENORMALIZED &&
         router->experts >= 1 && router->experts <= experts && router->top_k >= 1 && router->top_k <= router->experts &&
         (router->pooler || router->pooling != SELF_ATTENTION) &&
         ((router->numerator && router->denominator) || router->activation != RATIONAL);
}

static OrtStatus *read_route(const Kernel *kernel, const Tensors *tensors, void *data, size_t *bytes) {
  Route *run = data;
  const Api api = kernel->api;
  OrtContext *context = tensors->context;
  *bytes = 0;
  const OrtValue *hidden = ort_input(api, context, 0), *mask = ort_input(api, context, 1), *routers = ort_input(api, context, 2);
  int64_t rows[2], prompts[2], structs[3];
  if (!ort_dims(api, hidden, rows, 2) || !ort_dims(api, mask, prompts, 2) || !ort_dims(api, routers, structs, 3))
    return ort_error(api, "Route: hidden must be [B * T, d], mask [B, T] and routers [layers, B, 10]");
  *run = (Route){.kernel = kernel, .B = prompts[0], .T = prompts[1], .d = rows[1]};
  const int64_t E = kernel->experts;
  if (rows[0] != run->B * run->T || structs[1] != run->B || structs[2] != (int64_t)(sizeof(Router) / 8))
    return ort_error(api, "Route: hidden [B * T, d], mask [B, T] and routers [layers, B, 10] do not fit each other");
  if (kernel->layer < 0 || kernel->layer >= structs[0]) return ort_error(api, "Route: there are no routers for this layer");
  if (run->B > 0 && (run->T == 0 || run->d == 0)) return ort_error(api, "Route: a prompt is empty");
  run->routers = run->B ? (const Router *)ort_data(api, routers) + kernel->layer * run->B : NULL;
  for (int64_t b = 0; b < run->B; b++)
    if (!is_sound(run->routers + b, E))
      return ort_error(api, "Route: a router has settings or experts that there are not, or lacks numbers");
  const int64_t dims[2] = {run->B, E};
  run->gates = ort_output(api, context, 0, dims, 2);
  run->probabilities = ort_output(api, context, 1, dims, 2);
  if (run->B == 0 || E == 0) return NULL;
  if (!run->gates || !run->probabilities) return ort_error(api, "Route: no memory for the result");
  run->hidden = ort_data(api, hidden);
  run->mask = ort_data(api, mask);
  run->parts = run->B * run->T * run->d / 8 < ALONE ? 1 : least((int64_t)threads, run->B); /* 8: vectors are quick */
  run->scratchOfPart = 2 * run->T + run->d + E + 48;
  *bytes = 4 * (size_t)(run->parts * run->scratchOfPart);
  return NULL;
}

static void plan_route(void *data, char *memory, Plan *plan) {
  Route *run = data;
  run->scratch = (float *)memory;
  if (run->gates && run->B && run->kernel->experts) add_stage(plan, route_part, run, run->parts);
}

_Static_assert(sizeof(Route) <= sizeof(Run), "Route is larger than Run");

static const Attribute attributes[] = {ATTRIBUTE(WHOLE, "layer", layer), ATTRIBUTE(WHOLE, "experts", experts), {0}};
const Operator route_operator = {CUSTOM_OP(), "Route", read_route, plan_route, {FLOAT, FLOAT, INT64}, 3, 2, 0, attributes};
