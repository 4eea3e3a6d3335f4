/* y = gate sigmoid(gate) up, entry by entry        see swiglu.py */
#include "common.h"

enum { BLOCK = 8192 }; /* entries: a block's place does not depend on the number of threads */

/* The argument is held to +-87: 1 / (1 + e^88) would be subnormal, and slow. */
INLINE real sigmoid(real x) {
#ifdef REAL_IS_FLOAT
    x = x < -87.0f ? -87.0f : x;
    x = x > 87.0f ? 87.0f : x;
#endif
    return 1 / (1 + exponential(-x));
}

EXPORT NAME(swiglu_forward)(const real *gate, const real *up, real *y, integer n) {
#pragma omp parallel for schedule(static) num_threads(team(4 * n))
    for (integer b = 0; b < n; b += BLOCK)
#pragma omp simd
        for (integer i = b; i < smaller(b + BLOCK, n); i++) y[i] = gate[i] * sigmoid(gate[i]) * up[i];
}

/* dgate = g up s (1 + gate (1 - s)),  s = sigmoid(gate);     dup = g gate s */
EXPORT NAME(swiglu_backward)(const real *g, const real *gate, const real *up, real *dgate, real *dup,
                             integer n) {
#pragma omp parallel for schedule(static) num_threads(team(8 * n))
    for (integer b = 0; b < n; b += BLOCK)
#pragma omp simd
        for (integer i = b; i < smaller(b + BLOCK, n); i++) {
            real s = sigmoid(gate[i]), silu = gate[i] * s;
            dup[i] = g[i] * silu;
            dgate[i] = g[i] * up[i] * (s + silu * (1 - s));
        }
}
