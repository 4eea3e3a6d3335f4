/* A few rows x times up to three matrices whose rows are read once: y_i = x W_i^T */
#pragma once
#include "tile.h"

enum { FEW = 8, WEIGHTS = 3 };          /* most rows of x, and matrices */
enum { PIECES = 16 };                   /* of all rows of W: claiming one takes as long as some rows */
enum { RUN = 256, PARTS = 32 / LANES }; /* numbers that are decoded at a time; partial sums */

typedef struct {
    const void *rows;
    real *y; /* (few, m) */
    integer m;
} Weight;

typedef struct {
    const real *x;
    Weight weights[WEIGHTS];
    const real *bias; /* a number for each row of W, or NULL */
    integer few, n;
    integer m, piece; /* rows of W: of them all, of a piece */
} FewRows;

/* y: (few, m1), then those of the other matrices, whose m may be 0 */
INLINE FewRows few_rows_of(const real *x, real *y, integer few, integer n, const void *first, integer m1,
                           const void *second, integer m2, const void *third, integer m3) {
    integer m = m1 + m2 + m3;
    return (FewRows){x,
                     {{first, y, m1}, {second, y + few * m1, m2}, {third, y + few * (m1 + m2), m3}},
                     NULL, few, n, m, larger(16, blocks_of(PIECES, m))};
}

/* The matrix that row i of them all is in; i is then the row of this one. */
INLINE const Weight *weight_of(const FewRows *t, integer *i) {
    const Weight *w = t->weights;
    for (; *i >= w->m; w++) *i -= w->m;
    return w;
}

/* sums += w * x, in PARTS registers; n is a multiple of 32 */
INLINE void add_products(const real *w, const real *x, integer n, vector *sums) {
    vector s[PARTS];
#pragma GCC unroll 16
    for (int p = 0; p < PARTS; p++) s[p] = sums[p];
    for (integer l = 0; l < n; l += 32)
#pragma GCC unroll 16
        for (int p = 0; p < PARTS; p++)
            s[p] += *(const vector *)(w + l + p * LANES) * *(const vector *)(x + l + p * LANES);
#pragma GCC unroll 16
    for (int p = 0; p < PARTS; p++) sums[p] = s[p];
}

INLINE real total(const vector *sums) {
    vector sum = sums[0];
#pragma GCC unroll 16
    for (int p = 1; p < PARTS; p++) sum += sums[p];
    return sum_of(sum);
}
