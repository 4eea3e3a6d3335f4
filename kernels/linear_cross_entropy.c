/* Softmax cross-entropy of rows of logits        see linear_cross_entropy.py */
#include "common.h"

enum { ROWS = 4 }; /* of a piece */

typedef struct {
    const real *x, *log_sum, *g;
    const integer *target;
    real *loss, *sums, *dx;
    integer rows, v;
} Rows;

static void forward(const void *task, integer piece) {
    const Rows *p = task;
    integer v = p->v;
    for (integer row = piece * ROWS; row < smaller((piece + 1) * ROWS, p->rows); row++) {
        const real *x = p->x + row * v;
        real top = x[0], sum = 0;
#pragma omp simd reduction(max : top)
        for (integer i = 0; i < v; i++) top = x[i] > top ? x[i] : top;
#pragma omp simd reduction(+ : sum)
        for (integer i = 0; i < v; i++) sum += exponential(x[i] - top);
        p->sums[row] = top + LOG(sum);
        p->loss[row] = p->target[row] < 0 ? 0 : p->sums[row] - x[p->target[row]];
    }
}

/* loss = m + log sum e^(x - m) - x[target] and log_sum, its first two terms, of each row. A target
   that is negative is ignored: its loss is 0. */
EXPORT NAME(cross_entropy_forward)(const real *x, const integer *target, real *loss, real *log_sum,
                                   integer rows, integer v) {
    Rows p = {.x = x, .target = target, .loss = loss, .sums = log_sum, .rows = rows, .v = v};
    share(forward, &p, blocks_of(ROWS, rows), 8 * rows * v);
}

static void backward(const void *task, integer piece) {
    const Rows *p = task;
    integer v = p->v;
    for (integer row = piece * ROWS; row < smaller((piece + 1) * ROWS, p->rows); row++) {
        const real *x = p->x + row * v;
        integer target = p->target[row];
        real *dx = p->dx + row * v, scale = target < 0 ? 0 : p->g[row], base = p->log_sum[row];
#pragma omp simd
        for (integer i = 0; i < v; i++) dx[i] = scale * exponential(x[i] - base);
        if (target >= 0) dx[target] -= scale;
    }
}

/* dx = g (softmax(x) - the target's unit vector); 0 where the target is ignored. dx may be x. */
EXPORT NAME(cross_entropy_backward)(const real *x, const integer *target, const real *log_sum,
                                    const real *g, real *dx, integer rows, integer v) {
    Rows p = {x, log_sum, g, target, .dx = dx, .rows = rows, .v = v};
    share(backward, &p, blocks_of(ROWS, rows), 8 * rows * v);
}
