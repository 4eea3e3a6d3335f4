/* The pairs (x_i, x_(i + half)) turned by their angle, or back        see rope.py */
#include "common.h"

/* x and y: (b, h, t, 2 half) with strides (batch, head, row) in entries. cos and sin: (t, half).
   sign 1 turns, -1 turns back. */
EXPORT NAME(rope_turn)(const real *x, const integer *xs, const real *cosine, const real *sine,
                       real *y, const integer *ys, integer b, integer h, integer t, integer half,
                       real sign) {
#pragma omp parallel for schedule(static) num_threads(team(4 * b * h * t * half))
    for (integer n = 0; n < b * t; n++) {
        const real *c = cosine + n % t * half, *s = sine + n % t * half;
        for (integer head = 0; head < h; head++) {
            const real *from = x + n / t * xs[0] + head * xs[1] + n % t * xs[2];
            real *to = y + n / t * ys[0] + head * ys[1] + n % t * ys[2];
#pragma omp simd
            for (integer i = 0; i < half; i++) {
                real first = from[i], second = from[half + i], z = sign * s[i];
                to[i] = first * c[i] - second * z;
                to[half + i] = second * c[i] + first * z;
            }
        }
    }
}
