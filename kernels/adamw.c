/* One step of AdamW over many parameters in one pass        see adamw.py */
#include "common.h"

enum { BLOCK = 16384 }; /* entries of a piece */

/* One parameter: its arrays, their length, and keep = 1 - lr decay, rate = lr / (1 - b1^t),
   correction = (1 - b2^t)^(-1/2). first: the number of pieces of the parameters before it. */
typedef struct {
    real *w, *m, *v;
    const real *g;
    integer n, first;
    double keep, rate, correction;
} Parameter;

typedef struct {
    const Parameter *parameters;
    integer count;
    real b1, fresh, b2, fresh_square, eps; /* fresh = 1 - b1 and fresh_square = 1 - b2 of doubles */
} Step;

static void step(const void *task, integer piece) {
    const Step *s = task;
    integer low = 0, high = s->count; /* the last parameter whose first piece is not behind this one */
    while (high - low > 1) {
        integer middle = (low + high) / 2;
        if (s->parameters[middle].first <= piece) low = middle;
        else high = middle;
    }
    const Parameter *p = s->parameters + low;
    real *restrict w = p->w, *restrict m = p->m, *restrict v = p->v, keep = p->keep, rate = p->rate;
    const real *restrict g = p->g;
    real b1 = s->b1, b2 = s->b2, fresh = s->fresh, fresh_square = s->fresh_square;
    real eps = s->eps, correction = p->correction;
    integer begin = (piece - p->first) * BLOCK, end = smaller(begin + BLOCK, p->n);
#pragma omp simd
    for (integer i = begin; i < end; i++) {
        real mean = m[i] = b1 * m[i] + fresh * g[i];
        real square = v[i] = b2 * v[i] + fresh_square * (g[i] * g[i]);
        w[i] = w[i] * keep - rate * mean / (ROOT(square) * correction + eps);
    }
}

/* `first` is filled in here. */
EXPORT NAME(adamw_step)(Parameter *parameters, integer count, real b1, real fresh, real b2,
                             real fresh_square, real eps) {
    integer pieces = 0, total = 0;
    for (integer i = 0; i < count; i++) {
        parameters[i].first = pieces;
        pieces += blocks_of(BLOCK, parameters[i].n);
        total += parameters[i].n;
    }
    Step s = {parameters, count, b1, fresh, b2, fresh_square, eps};
    share(step, &s, pieces, 8 * total);
}
