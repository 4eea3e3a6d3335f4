/* Softmax cross-entropy of rows of logits        see linear_cross_entropy.py */
#include "common.h"

/* loss = m + log sum e^(x - m) - x[target] and log_sum, its first two terms, of each row. A target
   that is negative is ignored: its loss is 0. */
EXPORT NAME(cross_entropy_forward)(const real *x, const integer *target, real *loss, real *log_sum,
                                   integer rows, integer v) {
#pragma omp parallel for schedule(static) num_threads(team(2 * rows * v))
    for (integer row = 0; row < rows; row++) {
        const real *xr = x + row * v;
        real top = xr[0], sum = 0;
#pragma omp simd reduction(max : top)
        for (integer i = 0; i < v; i++) top = xr[i] > top ? xr[i] : top;
#pragma omp simd reduction(+ : sum)
        for (integer i = 0; i < v; i++) sum += exponential(xr[i] - top);
        log_sum[row] = top + LOG(sum);
        loss[row] = target[row] < 0 ? 0 : log_sum[row] - xr[target[row]];
    }
}

/* dx = g (softmax(x) - the target's unit vector); 0 where the target is ignored. dx may be x. */
EXPORT NAME(cross_entropy_backward)(const real *x, const integer *target, const real *log_sum,
                                    const real *g, real *dx, integer rows, integer v) {
#pragma omp parallel for schedule(static) num_threads(team(2 * rows * v))
    for (integer row = 0; row < rows; row++) {
        const real *xr = x + row * v;
        real *dr = dx + row * v, scale = target[row] < 0 ? 0 : g[row], base = log_sum[row];
#pragma omp simd
        for (integer i = 0; i < v; i++) dr[i] = scale * exponential(xr[i] - base);
        if (target[row] >= 0) dr[target[row]] -= scale;
    }
}
