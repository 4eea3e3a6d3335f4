/* Sums of squares of many arrays, in double        see squares.py */
#include "common.h"

enum { BLOCK = 16384 };

typedef struct {
    const real *x;
    integer n;
    double *sums;
} Squares;

static void sum_block(const void *task, integer b) {
    const Squares *p = task;
    const real *x = p->x;
    double sum = 0;
    integer end = smaller((b + 1) * BLOCK, p->n);
#pragma omp simd reduction(+ : sum)
    for (integer i = b * BLOCK; i < end; i++) sum += (double)x[i] * x[i];
    p->sums[b] = sum;
}

/* One sum of x^2 for each block of each array, one array after another. */
EXPORT NAME(squares)(const real *const *arrays, const integer *lengths, integer count,
                     double *sums) {
    for (integer i = 0; i < count; i++) {
        Squares p = {arrays[i], lengths[i], sums};
        share(sum_block, &p, blocks_of(BLOCK, p.n), 2 * p.n);
        sums += blocks_of(BLOCK, p.n);
    }
}
