/* The kernels of one instruction set, which the compiler is told; compiled once for each. */
#include "kernels/adapters.h"
#include "kernels/attention.h"
#include "kernels/products.h"
#include "kernels/router.h"
#include "kernels/rows.h"

const Kernels KERNELS = {round_row, multiply, project, expand, change, apply, pack, gate, add_norm, rotate, attend, widen, narrow, route};
