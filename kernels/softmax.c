/* y = e^(x - m) / sum e^(x - m) over rows, m the row's greatest        see softmax.py */
#include "common.h"

enum { ENTRIES = 8192, RUN = 1024 }; /* of a piece, in whole rows; that are added up in `real` */

typedef struct {
    const real *x, *g;
    real *y;
    integer rows, d, piece; /* rows of a piece */
} Rows;

static Rows rows_of(const real *x, const real *g, real *y, integer rows, integer d) {
    return (Rows){x, g, y, rows, d, larger(1, ENTRIES / d)};
}

#ifdef REAL_IS_FLOAT

/* Below e^-87 it is 0, so that an entry of -infinity is. A NaN makes a row of them, as it should. */
static void forward(const void *task, integer piece) {
    const Rows *p = task;
    integer d = p->d, end = smaller((piece + 1) * p->piece, p->rows);
    for (integer row = piece * p->piece; row < end; row++) {
        const float *x = p->x + row * d;
        float *y = p->y + row * d, top = x[0];
        double total = 0;
#pragma omp simd reduction(max : top)
        for (integer i = 0; i < d; i++) top = x[i] > top ? x[i] : top;
        for (integer run = 0; run < d; run += RUN) {
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (integer i = run; i < smaller(run + RUN, d); i++) {
                float shifted = x[i] - top;
                sum += y[i] = shifted < -87 ? 0 : exponential(shifted);
            }
            total += sum;
        }
        float sum = (float)total;
#pragma omp simd
        for (integer i = 0; i < d; i++) y[i] /= sum;
    }
}

EXPORT softmax_forward_float(const float *x, float *y, integer rows, integer d) {
    Rows p = rows_of(x, NULL, y, rows, d);
    share(forward, &p, blocks_of(p.piece, rows), 8 * rows * d);
}

#endif

/* dx = y (g - sum g y) */
static void backward(const void *task, integer piece) {
    const Rows *p = task;
    integer d = p->d, end = smaller((piece + 1) * p->piece, p->rows);
    for (integer row = piece * p->piece; row < end; row++) {
        const real *y = p->x + row * d, *g = p->g + row * d;
        real *dx = p->y + row * d;
        double total = 0;
        for (integer run = 0; run < d; run += RUN) {
            real sum = 0;
#pragma omp simd reduction(+ : sum)
            for (integer i = run; i < smaller(run + RUN, d); i++) sum += g[i] * y[i];
            total += sum;
        }
        real dot = (real)total;
#pragma omp simd
        for (integer i = 0; i < d; i++) dx[i] = y[i] * (g[i] - dot);
    }
}

EXPORT NAME(softmax_backward)(const real *g, const real *y, real *dx, integer rows, integer d) {
    Rows p = rows_of(y, g, dx, rows, d);
    share(backward, &p, blocks_of(p.piece, rows), 4 * rows * d);
}
