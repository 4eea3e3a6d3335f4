/* y = gate sigmoid(gate) up, entry by entry        see swiglu.py */
#include "common.h"

enum { BLOCK = 8192 }; /* entries of a piece */

typedef struct {
    const real *g, *gate, *up;
    real *y, *dgate, *dup;
    integer n;
} Gated;

/* The argument is held to +-87: 1 / (1 + e^88) would be subnormal, and slow. */
INLINE real sigmoid(real x) {
#ifdef REAL_IS_FLOAT
    x = x < -87.0f ? -87.0f : x;
    x = x > 87.0f ? 87.0f : x;
#endif
    return 1 / (1 + exponential(-x));
}

static void forward(const void *task, integer b) {
    const Gated *s = task;
    const real *gate = s->gate, *up = s->up;
    real *y = s->y;
    integer end = smaller((b + 1) * BLOCK, s->n);
#pragma omp simd
    for (integer i = b * BLOCK; i < end; i++) y[i] = gate[i] * sigmoid(gate[i]) * up[i];
}

EXPORT NAME(swiglu_forward)(const real *gate, const real *up, real *y, integer n) {
    Gated s = {.gate = gate, .up = up, .y = y, .n = n};
    share(forward, &s, blocks_of(BLOCK, n), 8 * n);
}

static void backward(const void *task, integer b) {
    const Gated *t = task;
    const real *g = t->g, *gate = t->gate, *up = t->up;
    real *dgate = t->dgate, *dup = t->dup;
    integer end = smaller((b + 1) * BLOCK, t->n);
#pragma omp simd
    for (integer i = b * BLOCK; i < end; i++) {
        real s = sigmoid(gate[i]), silu = gate[i] * s;
        dup[i] = g[i] * silu;
        dgate[i] = g[i] * up[i] * (s + silu * (1 - s));
    }
}

/* dgate = g up s (1 + gate (1 - s)),  s = sigmoid(gate);     dup = g gate s */
EXPORT NAME(swiglu_backward)(const real *g, const real *gate, const real *up, real *dgate, real *dup,
                             integer n) {
    Gated s = {g, gate, up, .dgate = dgate, .dup = dup, .n = n};
    share(backward, &s, blocks_of(BLOCK, n), 16 * n);
}
