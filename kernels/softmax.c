/* y = e^(x - m) / sum e^(x - m) over rows, m the row's greatest        see softmax.py */
#include "common.h"

enum { ENTRIES = 8192 }; /* of a piece, in whole rows */

typedef struct {
    const real *x, *g;
    real *y;
    integer rows, d, piece; /* rows of a piece */
} Rows;

static Rows rows_of(const real *x, const real *g, real *y, integer rows, integer d) {
    return (Rows){x, g, y, rows, d, larger(1, ENTRIES / d)};
}

/* Below e^-87 it is 0, so that an entry of -infinity is. A NaN makes a row of them, as it should. */
static void forward(const void *task, integer piece) {
    const Rows *p = task;
    integer d = p->d, end = smaller((piece + 1) * p->piece, p->rows);
    for (integer row = piece * p->piece; row < end; row++) {
        const real *x = p->x + row * d;
        real *y = p->y + row * d, top = x[0], sum = 0;
#pragma omp simd reduction(max : top)
        for (integer i = 0; i < d; i++) top = x[i] > top ? x[i] : top;
#pragma omp simd reduction(+ : sum)
        for (integer i = 0; i < d; i++) {
            real shifted = x[i] - top;
            sum += y[i] = shifted < -87 ? 0 : exponential(shifted);
        }
#pragma omp simd
        for (integer i = 0; i < d; i++) y[i] /= sum;
    }
}

EXPORT NAME(softmax_forward)(const real *x, real *y, integer rows, integer d) {
    Rows p = rows_of(x, NULL, y, rows, d);
    share(forward, &p, blocks_of(p.piece, rows), 8 * rows * d);
}

/* dx = y (g - sum g y) */
static void backward(const void *task, integer piece) {
    const Rows *p = task;
    integer d = p->d, end = smaller((piece + 1) * p->piece, p->rows);
    for (integer row = piece * p->piece; row < end; row++) {
        const real *y = p->x + row * d, *g = p->g + row * d;
        real *dx = p->y + row * d, dot = 0;
#pragma omp simd reduction(+ : dot)
        for (integer i = 0; i < d; i++) dot += g[i] * y[i];
#pragma omp simd
        for (integer i = 0; i < d; i++) dx[i] = y[i] * (g[i] - dot);
    }
}

EXPORT NAME(softmax_backward)(const real *g, const real *y, real *dx, integer rows, integer d) {
    Rows p = rows_of(y, g, dx, rows, d);
    share(backward, &p, blocks_of(p.piece, rows), 4 * rows * d);
}
