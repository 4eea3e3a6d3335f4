/* h = x + residual,  y = h / sqrt(mean(h^2) + eps) * w     x: (rows, d)  w: (d,)    see rms_norm.py */
#include "common.h"

enum { ROWS = 16 }; /* of a piece */

typedef struct {
    const real *g, *gh, *x, *residual, *w, *kept;
    real *h, *y, *scale, *dx, *dw, *partial;
    integer rows, d, block;
    real eps;
} Norm;

INLINE real *row_of(const real *x, integer row, integer d) { return x ? (real *)x + row * d : NULL; }

static void forward(const void *task, integer piece) {
    const Norm *n = task;
    integer d = n->d;
    for (integer row = piece * ROWS; row < smaller((piece + 1) * ROWS, n->rows); row++) {
        const real *x = row_of(n->x, row, d), *r = row_of(n->residual, row, d), *w = n->w;
        real *h = row_of(n->h, row, d), *y = row_of(n->y, row, d), squares = 0;
        if (r) {
#pragma omp simd
            for (integer i = 0; i < d; i++) h[i] = x[i] + r[i];
            x = h;
        }
#pragma omp simd reduction(+ : squares)
        for (integer i = 0; i < d; i++) squares += x[i] * x[i];
        real k = n->scale[row] = 1 / ROOT(squares / d + n->eps);
#pragma omp simd
        for (integer i = 0; i < d; i++) y[i] = x[i] * k * w[i];
    }
}

/* scale[row] = 1 / sqrt(mean(h^2) + eps) is kept for the backward pass. Without a residual (NULL)
   h is x, and is not written. */
EXPORT NAME(rms_norm_forward)(const real *x, const real *residual, const real *w, real *h, real *y,
                              real *scale, integer rows, integer d, real eps) {
    Norm n = {.x = x, .residual = residual, .w = w, .h = h, .y = y, .scale = scale,
              .rows = rows, .d = d, .eps = eps};
    share(forward, &n, blocks_of(ROWS, rows), 2 * rows * d);
}

static void backward(const void *task, integer b) {
    const Norm *n = task;
    integer d = n->d;
    real *sum = n->partial + b * d;
    if (n->dw) memset(sum, 0, d * sizeof(real));
    for (integer row = b * n->block; row < smaller((b + 1) * n->block, n->rows); row++) {
        const real *g = row_of(n->g, row, d), *gh = row_of(n->gh, row, d), *w = n->w;
        const real *h = row_of(n->x, row, d);
        real *dx = row_of(n->dx, row, d), k = n->kept[row], dot = 0;
        if (n->dw)
#pragma omp simd
            for (integer i = 0; i < d; i++) sum[i] += g[i] * h[i] * k;
        if (!dx) continue;
#pragma omp simd reduction(+ : dot)
        for (integer i = 0; i < d; i++) dot += g[i] * w[i] * h[i];
        real q = dot * k * k / d;
        if (gh)
#pragma omp simd
            for (integer i = 0; i < d; i++) dx[i] = gh[i] + (g[i] * w[i] - h[i] * q) * k;
        else
#pragma omp simd
            for (integer i = 0; i < d; i++) dx[i] = (g[i] * w[i] - h[i] * q) * k;
    }
}

/* dx = gh + k (g w - h k^2 mean(g w h)),  k = scale;     dw = sum over rows of g h k
   gh (the gradient of h), dx or dw may be NULL. `partial` holds one sum of dw for each block of
   `block` rows. */
EXPORT NAME(rms_norm_backward)(const real *g, const real *gh, const real *h, const real *w,
                               const real *scale, real *dx, real *dw, real *partial, integer rows,
                               integer d, integer block) {
    Norm n = {.g = g, .gh = gh, .x = h, .w = w, .kept = scale, .dx = dx, .dw = dw,
              .partial = partial, .rows = rows, .d = d, .block = block};
    integer blocks = blocks_of(block, rows);
    share(backward, &n, blocks, 4 * rows * d);
    if (!dw) return;
    memset(dw, 0, d * sizeof(real));
    for (integer b = 0; b < blocks; b++)
#pragma omp simd
        for (integer i = 0; i < d; i++) dw[i] += partial[b * d + i];
}
