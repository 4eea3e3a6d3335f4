/* y = x / sqrt(mean(x^2) + eps) * w        x: (rows, d)  w: (d,)        see rms_norm.py */
#include "common.h"

/* scale[row] = 1 / sqrt(mean(x^2) + eps) is kept for the backward pass. */
EXPORT NAME(rms_norm_forward)(const real *x, const real *w, real *y, real *scale,
                              integer rows, integer d, real eps) {
#pragma omp parallel for schedule(static) num_threads(team(rows * d))
    for (integer row = 0; row < rows; row++) {
        const real *xr = x + row * d;
        real *yr = y + row * d, squares = 0;
#pragma omp simd reduction(+ : squares)
        for (integer i = 0; i < d; i++) squares += xr[i] * xr[i];
        real k = scale[row] = 1 / ROOT(squares / d + eps);
#pragma omp simd
        for (integer i = 0; i < d; i++) yr[i] = xr[i] * k * w[i];
    }
}

/* dx = k (g w - x k^2 mean(g w x)),  k = scale;     dw = sum over rows of g x k
   dx or dw may be NULL. `partial` holds one sum of dw for each block of `block` rows. */
EXPORT NAME(rms_norm_backward)(const real *g, const real *x, const real *w, const real *scale,
                               real *dx, real *dw, real *partial, integer rows, integer d, integer block) {
    integer blocks = blocks_of(block, rows);
#pragma omp parallel for schedule(static) num_threads(team(rows * d))
    for (integer b = 0; b < blocks; b++) {
        real *sum = partial + b * d;
        if (dw) memset(sum, 0, d * sizeof(real));
        for (integer row = b * block; row < smaller((b + 1) * block, rows); row++) {
            const real *gr = g + row * d, *xr = x + row * d;
            real k = scale[row], dot = 0;
            if (dw)
#pragma omp simd
                for (integer i = 0; i < d; i++) sum[i] += gr[i] * xr[i] * k;
            if (!dx) continue;
#pragma omp simd reduction(+ : dot)
            for (integer i = 0; i < d; i++) dot += gr[i] * w[i] * xr[i];
            real *dr = dx + row * d, q = dot * k * k / d;
#pragma omp simd
            for (integer i = 0; i < d; i++) dr[i] = (gr[i] * w[i] - xr[i] * q) * k;
        }
    }
    if (!dw) return;
    memset(dw, 0, d * sizeof(real));
    for (integer b = 0; b < blocks; b++)
#pragma omp simd
        for (integer i = 0; i < d; i++) dw[i] += partial[b * d + i];
}
