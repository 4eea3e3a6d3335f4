/* For each unit the weighted sum of its rows, in double        see unit_sums.py */
#include "common.h"

enum { COLUMNS = 32 }; /* of a piece: each thread adds to columns of its own, in the rows' order */

typedef struct {
    const real *x, *weight;
    const integer *unit;
    double *sums;
    integer x_down, n, k, d;
} Sums;

static void add_columns(const void *task, integer piece) {
    const Sums *p = task;
    integer first = piece * COLUMNS, many = smaller(COLUMNS, p->d - first);
    for (integer j = 0; j < p->k; j++) memset(p->sums + j * p->d + first, 0, many * sizeof(double));
    for (integer i = 0; i < p->n; i++) {
        const real *restrict from = p->x + i * p->x_down + first;
        double *restrict to = p->sums + p->unit[i] * p->d + first;
        double weight = p->weight ? p->weight[i] : 1;
#pragma omp simd
        for (integer f = 0; f < many; f++) to[f] += weight * from[f];
    }
}

/* x (n, d) in rows, weight (n) or null, unit (n) in 0 ... k - 1 -> sums (k, d) */
EXPORT NAME(unit_sums)(const real *x, integer x_down, const real *weight, const integer *unit,
                       double *sums, integer n, integer k, integer d) {
    Sums p = {x, weight, unit, sums, x_down, n, k, d};
    share(add_columns, &p, blocks_of(COLUMNS, d), (n + k) * d);
}
