/* Softmax cross-entropy of rows of logits        see linear_cross_entropy.py */
#include "common.h"

enum { ROWS = 4 }; /* of a piece */

typedef struct {
    const real *x, *g;
    const integer *target;
    real *loss, *top, *beyond, *dx;
    integer rows, v;
} Rows;

/* sum e^(x_i - top) of x_from, ..., x_(to - 1) */
INLINE real exponentials(const real *x, integer from, integer to, real top) {
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (integer i = from; i < to; i++) sum += exponential(x[i] - top);
    return sum;
}

static void forward(const void *task, integer piece) {
    const Rows *p = task;
    integer v = p->v;
    for (integer row = piece * ROWS; row < smaller((piece + 1) * ROWS, p->rows); row++) {
        const real *x = p->x + row * v;
        integer target = larger(p->target[row], 0);
        real top = x[0];
#pragma omp simd reduction(max : top)
        for (integer i = 0; i < v; i++) top = x[i] > top ? x[i] : top;
        real others = exponentials(x, 0, target, top) + exponentials(x, target + 1, v, top);
        real beyond = others + (exponential(x[target] - top) - 1);
        p->top[row] = top;
        p->beyond[row] = beyond;
        p->loss[row] = p->target[row] < 0 ? 0 : LOG1P(beyond) - (x[target] - top);
    }
}

/* loss = log(1 + beyond) - (x[target] - top) of each row, where 1 + beyond = sum e^(x - top) and
   top = max x. Neither is rounded into the other: beyond may be tiny beside 1, and its logarithm
   beside top. A target that is negative is ignored: its loss is 0. */
EXPORT NAME(cross_entropy_forward)(const real *x, const integer *target, real *loss, real *top,
                                   real *beyond, integer rows, integer v) {
    Rows p = {x, .target = target, .loss = loss, .top = top, .beyond = beyond, .rows = rows, .v = v};
    share(forward, &p, blocks_of(ROWS, rows), 8 * rows * v);
}

static void backward(const void *task, integer piece) {
    const Rows *p = task;
    integer v = p->v;
    for (integer row = piece * ROWS; row < smaller((piece + 1) * ROWS, p->rows); row++) {
        const real *x = p->x + row * v;
        integer target = p->target[row];
        real *dx = p->dx + row * v, top = p->top[row], beyond = p->beyond[row];
        real scale = target < 0 ? 0 : p->g[row] / (1 + beyond);
        real others = target < 0 ? 0 : beyond - (exponential(x[target] - top) - 1);
#pragma omp simd
        for (integer i = 0; i < v; i++) dx[i] = scale * exponential(x[i] - top);
        if (target >= 0) dx[target] = -scale * others; /* p - 1, of which no digit is lost */
    }
}

/* dx = g (softmax(x) - the target's unit vector); 0 where the target is ignored. dx may be x. */
EXPORT NAME(cross_entropy_backward)(const real *x, const integer *target, real *top, real *beyond,
                                    const real *g, real *dx, integer rows, integer v) {
    Rows p = {x, g, target, .top = top, .beyond = beyond, .dx = dx, .rows = rows, .v = v};
    share(backward, &p, blocks_of(ROWS, rows), 8 * rows * v);
}
