/* The gradient of a table's rows: those of g added to the rows that they came from  see embedding.py */
#include "common.h"

enum { COLUMNS = 32 }; /* of a piece: each thread adds to columns of its own, in the tokens' order */

typedef struct {
    const real *g;
    const integer *index;
    real *table;
    integer n, v, d;
} Scatter;

static void add_columns(const void *task, integer piece) {
    const Scatter *p = task;
    integer first = piece * COLUMNS, many = smaller(COLUMNS, p->d - first);
    for (integer row = 0; row < p->v; row++) memset(p->table + row * p->d + first, 0, many * sizeof(real));
    for (integer i = 0; i < p->n; i++) {
        const real *restrict from = p->g + i * p->d + first;
        real *restrict to = p->table + p->index[i] * p->d + first;
#pragma omp simd
        for (integer j = 0; j < many; j++) to[j] += from[j];
    }
}

/* table (v, d) = sum over i of g[i] in row index[i]; index in 0 ... v - 1 */
EXPORT NAME(embedding_backward)(const real *g, const integer *index, real *table, integer n, integer v,
                                integer d) {
    Scatter p = {g, index, table, n, v, d};
    share(add_columns, &p, blocks_of(COLUMNS, d), (n + v) * d);
}
