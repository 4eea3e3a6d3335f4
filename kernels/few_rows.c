/* y_i = x W_i^T for a few rows x        see few_rows.py */
#include "few.h"

enum { AHEAD = 2048 }; /* numbers: a few rows */

static void rows_dense(const void *task, integer piece) {
    const FewRows *t = task;
    integer end = smaller((piece + 1) * t->piece, t->m), whole = t->n / 32 * 32;
    for (integer of_all = piece * t->piece; of_all < end; of_all++) {
        integer i = of_all;
        const Weight *weight = weight_of(t, &i);
        const real *w = (const real *)weight->rows + i * t->n;
        for (integer r = 0; r < t->few; r++) {
            const real *x = t->x + r * t->n;
            vector sums[PARTS] = {0};
            for (integer k = 0; k < whole; k += 32) {
                /* Asked for early, and not to be kept: W, read once, would drive out of the caches
                   what Python needs between kernels. */
                __builtin_prefetch(w + k + AHEAD, 0, 0);
                __builtin_prefetch(w + k + AHEAD + 16, 0, 0);
                add_products(w + k, x + k, 32, sums);
            }
            real y = total(sums);
            for (integer k = whole; k < t->n; k++) y += w[k] * x[k];
            weight->y[r * weight->m + i] = t->bias ? y + t->bias[of_all] : y;
        }
    }
}

/* bias (m1 + m2 + m3) or NULL: added to what the matrices give, one after another */
EXPORT NAME(few_rows)(const real *x, real *y, integer few, integer n, const real *bias, const real *first,
                      integer m1, const real *second, integer m2, const real *third, integer m3) {
    FewRows t = few_rows_of(x, y, few, n, first, m1, second, m2, third, m3);
    t.bias = bias;
    share(rows_dense, &t, blocks_of(t.piece, t.m), 2 * few * t.m * n);
}

#ifdef REAL_IS_FLOAT

/* As many bfloat16s as a register has numbers, widened on the way into it. */
INLINE vector widened(const bf16 *x) {
    typedef bf16 halves __attribute__((vector_size(REGISTER / 2)));
    typedef uint32_t words __attribute__((vector_size(REGISTER)));
    halves read;
    memcpy(&read, x, sizeof read);
    return (vector)(__builtin_convertvector(read, words) << 16);
}

static void rows_of_halves(const void *task, integer piece) {
    const FewRows *t = task;
    integer end = smaller((piece + 1) * t->piece, t->m), whole = t->n / 32 * 32;
    for (integer of_all = piece * t->piece; of_all < end; of_all++) {
        integer i = of_all;
        const Weight *weight = weight_of(t, &i);
        const bf16 *w = (const bf16 *)weight->rows + i * t->n;
        for (integer r = 0; r < t->few; r++) {
            const float *x = t->x + r * t->n;
            vector sums[PARTS] = {0};
            for (integer k = 0; k < whole; k += 32) {
                __builtin_prefetch(w + k + AHEAD, 0, 0);
#pragma GCC unroll 16
                for (int p = 0; p < PARTS; p++)
                    sums[p] += widened(w + k + p * LANES) * *(const vector *)(x + k + p * LANES);
            }
            float y = total(sums), rest[32];
            widen(w + whole, rest, t->n - whole);
            for (integer k = whole; k < t->n; k++) y += rest[k - whole] * x[k];
            weight->y[r * weight->m + i] = t->bias ? y + t->bias[of_all] : y;
        }
    }
}

/* The W in bfloat16, x and y in float32. */
EXPORT few_rows_of_halves_float(const float *x, float *y, integer few, integer n, const float *bias,
                                const bf16 *first, integer m1, const bf16 *second, integer m2,
                                const bf16 *third, integer m3) {
    FewRows t = few_rows_of(x, y, few, n, first, m1, second, m2, third, m3);
    t.bias = bias;
    share(rows_of_halves, &t, blocks_of(t.piece, t.m), 2 * few * t.m * n);
}

#endif
