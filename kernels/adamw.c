/* One step of AdamW in one pass over the parameters        see adamw.py */
#include "common.h"

enum { BLOCK = 8192 };

/* keep = 1 - lr decay, rate = lr / (1 - b1^t), correction = (1 - b2^t)^(-1/2) */
EXPORT NAME(adamw_step)(real *w, const real *g, real *m, real *v, integer n, real keep, real rate,
                        real b1, real b2, real correction, real eps) {
#pragma omp parallel for schedule(static) num_threads(team(4 * n))
    for (integer b = 0; b < n; b += BLOCK)
#pragma omp simd
        for (integer i = b; i < smaller(b + BLOCK, n); i++) {
            real mean = m[i] = b1 * m[i] + (1 - b1) * g[i];
            real square = v[i] = b2 * v[i] + (1 - b2) * (g[i] * g[i]);
            w[i] = w[i] * keep - rate * mean / (ROOT(square) * correction + eps);
        }
}
