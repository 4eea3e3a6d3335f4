/* The best-matching unit of each row        see best_matching_units.py */
#include "tile.h"

enum { ROWS = 32, PANEL = WIDE * LANES };

#ifdef REAL_IS_FLOAT /* integers, as many and as wide as the numbers of a register */
typedef int32_t places __attribute__((vector_size(REGISTER)));
#else
typedef int64_t places __attribute__((vector_size(REGISTER)));
#endif

typedef struct {
    const real *x, *w, *center;
    real *table;
    integer *unit;
    real *distance;
    integer x_down, n, k, d;
} Search;

/* Units side by side, PANEL at a time: for each feature their w - center, then -|w - center|^2 / 2.
   Where there is no unit any more the score is -inf. */
static void pack_units(const void *task, integer panel) {
    const Search *p = task;
    real *restrict to = p->table + panel * PANEL * (p->d + 1);
    for (integer l = 0; l < PANEL; l++) {
        integer unit = panel * PANEL + l;
        double square = unit < p->k ? 0 : INFINITY;
        for (integer f = 0; f < p->d; f++) {
            real gap = unit < p->k ? p->w[unit * p->d + f] - p->center[f] : 0;
            to[f * PANEL + l] = gap;
            square += (double)gap * gap;
        }
        to[p->d * PANEL + l] = (real)(-0.5 * square);
    }
}

/* Keep in each lane the greater score and its unit; of equal ones the first, which was there. */
INLINE void keep_better(const real *scores, integer first, vector *best, places *unit) {
    places lanes;
    for (int l = 0; l < LANES; l++) lanes[l] = l;
#pragma GCC unroll 4
    for (int j = 0; j < WIDE; j++) {
        vector score = *(const vector *)(scores + j * LANES);
        places better = score > *best, number = lanes + (int)(first + j * LANES);
        *best = (vector)((better & (places)score) | (~better & (places)*best));
        *unit = (better & number) | (~better & *unit);
    }
}

/* Rows stay in the first-level cache, and so does a panel of units while all of them meet it. */
static void match_rows(const void *task, integer piece) {
    const Search *p = task;
    integer first = piece * ROWS, many = smaller(ROWS, p->n - first), deep = p->d + 1;
    integer panels = blocks_of(PANEL, p->k);
    real *restrict left = scratch(OWN, ROWS * deep * sizeof(real));
    double squares[ROWS] = {0};
    vector best[ROWS];
    places unit[ROWS];
    for (integer i = 0; i < ROWS; i++) {
        const real *x = p->x + (first + smaller(i, many - 1)) * p->x_down; /* the last one, again */
        for (integer f = 0; f < p->d; f++) {
            real gap = x[f] - p->center[f];
            left[i * deep + f] = gap;
            squares[i] += (double)gap * gap;
        }
        left[i * deep + p->d] = 1;
        best[i] = (vector){0} - (real)INFINITY;
        unit[i] = (places){0};
    }
    for (integer panel = 0; panel < panels; panel++)
        for (integer i = 0; i < many; i += TALL) {
            real scores[TALL * PANEL];
            tile(TALL, WIDE, deep, left + i * deep, deep, 1, p->table + panel * PANEL * deep, PANEL, scores,
                 PANEL, 0);
            for (integer r = 0; r < TALL; r++)
                keep_better(scores + r * PANEL, panel * PANEL, best + i + r, unit + i + r);
        }
    for (integer i = 0; i < many; i++) {
        int lane = 0;
        for (int l = 1; l < LANES; l++)
            if (best[i][l] > best[i][lane] || (best[i][l] == best[i][lane] && unit[i][l] < unit[i][lane]))
                lane = l;
        double square = squares[i] - 2 * (double)best[i][lane];
        p->unit[first + i] = unit[i][lane];
        p->distance[first + i] = square > 0 ? ROOT((real)square) : 0;
    }
}

/* x (n, d) in rows, w (k, d), center (d) -> unit (n), distance (n) */
EXPORT NAME(best_matching_units)(const real *x, integer x_down, const real *w, const real *center,
                                 integer *unit, real *distance, integer n, integer k, integer d) {
    integer panels = blocks_of(PANEL, k);
    real *table = scratch(SHARED, panels * PANEL * (d + 1) * sizeof(real));
    Search p = {x, w, center, table, unit, distance, x_down, n, k, d};
    share(pack_units, &p, panels, k * d);
    share(match_rows, &p, blocks_of(ROWS, n), 2 * n * k * d);
}
