/* y = x Phi(x), Phi(x) = erfc(-x / sqrt 2) / 2        see gelu.py */
#include "common.h"

enum { BLOCK = 4096 }; /* entries of a piece */

#ifdef REAL_IS_FLOAT
#define ERFC erfcf
#else
#define ERFC erfc
#endif

typedef struct {
    const real *g, *x;
    real *y;
    integer n;
} Entries;

static const real ROOT_HALF = 0.70710678118654752440, ROOT_TAU = 2.50662827463100050242;

static void forward(const void *task, integer b) {
    const Entries *p = task;
    for (integer i = b * BLOCK; i < smaller((b + 1) * BLOCK, p->n); i++)
        p->y[i] = p->x[i] * ((real)0.5 * ERFC(-ROOT_HALF * p->x[i]));
}

EXPORT NAME(gelu_forward)(const real *x, real *y, integer n) {
    Entries p = {NULL, x, y, n};
    share(forward, &p, blocks_of(BLOCK, n), 32 * n);
}

/* dx = g (Phi(x) + x phi(x)),  phi(x) = e^(-x^2 / 2) / sqrt(2 pi) */
static void backward(const void *task, integer b) {
    const Entries *p = task;
    for (integer i = b * BLOCK; i < smaller((b + 1) * BLOCK, p->n); i++) {
        real x = p->x[i], bell = exponential((real)-0.5 * x * x) / ROOT_TAU;
        p->y[i] = p->g[i] * ((real)0.5 * ERFC(-ROOT_HALF * x) + x * bell);
    }
}

EXPORT NAME(gelu_backward)(const real *g, const real *x, real *dx, integer n) {
    Entries p = {g, x, dx, n};
    share(backward, &p, blocks_of(BLOCK, n), 32 * n);
}
