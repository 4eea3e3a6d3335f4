/* C = A B, or C += A B, of any strides, by tiles in registers        see product.py

   Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication", for two caches:
   B is cut into blocks (DEPTH by BREADTH) that stay in the second-level cache, packed in panels
   that a tile reads line by line; a few rows of A at a time stay in the first-level cache. */
#include "tile.h"

enum {
    PANEL = WIDE * LANES,                          /* columns of B that a tile takes */
    DEPTH = 1024 / sizeof(real),                   /* rows of B in a block */
    BREADTH = 3072 / sizeof(real) / PANEL * PANEL, /* columns of B in a block: 768 KB in all */
    LINES = 16,                                    /* rows of B that are packed in a piece of work */
};

typedef struct {
    const real *a, *b;
    real *c, *packed;
    const real *bias; /* what the rows of C begin with, if it is not NULL */
    integer a_down, a_across, b_down, b_across, c_down; /* entries to the next row, next column */
    integer m, n, k;                                    /* of this block */
    integer rows;                                       /* of A in a piece of work */
    int add;
} Block;

/* B in panels: PANEL columns side by side, rows one after another, zeros where B has no more columns.
   A few rows of all panels, for B by rows: read in order, as memory likes it. */
static void pack_lines(const void *task, integer piece) {
    const Block *p = task;
    integer first = piece * LINES, end = smaller(first + LINES, p->k);
    for (integer i = first; i < end; i++)
        for (integer j = 0; j < p->n; j += PANEL) {
            integer width = smaller(PANEL, padded(p->n - j)), filled = smaller(width, p->n - j);
            real *restrict to = p->packed + j * p->k + i * width;
            const real *restrict from = p->b + i * p->b_down + j;
            fetch(from + LEAD * p->b_down, filled * sizeof(real));
            if (filled == PANEL) { /* a length that the compiler knows is no call */
                memcpy(to, from, PANEL * sizeof(real));
            } else {
                memcpy(to, from, filled * sizeof(real));
                memset(to + filled, 0, (width - filled) * sizeof(real));
            }
        }
}

/* One panel, for any other B. */
static void pack_panel(const void *task, integer panel) {
    const Block *p = task;
    integer j = panel * PANEL, width = smaller(PANEL, padded(p->n - j)), filled = smaller(width, p->n - j);
    real *restrict to = p->packed + j * p->k;
    const real *restrict from = p->b + j * p->b_across;
    integer squares = p->b_down == 1 ? filled / LANES * LANES : 0, deep = p->k / LANES * LANES;
    for (integer l = 0; l < squares; l += LANES)
        for (integer i = 0; i < deep; i += LANES)
            transpose_square(from + l * p->b_across + i, p->b_across, to + i * width + l, width);
    for (integer i = 0; i < p->k; i++)
        for (integer l = i < deep ? squares : 0; l < width; l++)
            to[i * width + l] = l < filled ? from[l * p->b_across + i * p->b_down] : 0;
}

/* `rows` rows of A, TALL at a time, their columns one after another: what a tile reads in order.
   Where A is stored by columns, all strips of a few columns: a line holds entries of two. */
static void pack_rows(const Block *p, const real *restrict a, real *restrict to, integer rows) {
    integer k = p->k, across = p->a_across, whole = p->a_down == 1 ? rows / TALL * TALL : 0;
    for (integer first = 0; whole && first < k; first += LEAD) {
        integer end = smaller(first + LEAD, k);
        for (integer i = first; i < end; i++) fetch(a + (i + LEAD) * across, whole * sizeof(real));
        for (integer r = 0; r < whole; r += TALL)
            for (integer i = first; i < end; i++)
                memcpy(to + r * k + i * TALL, a + r + i * across, TALL * sizeof(real));
    }
    for (integer i = 0; i < k; i++)
        for (integer r = whole; r < rows; r++)
            to[r / TALL * TALL * k + i * TALL + r % TALL] = a[r * p->a_down + i * across];
}

/* One tile, through a tile of its own where C has fewer columns than registers hold. */
INLINE void tile_to(const int tall, const int wide, integer width, const Block *p, const real *a, integer down,
                    integer across, const real *b, real *c) {
    if (width == wide * LANES) {
        tile(tall, wide, p->k, a, down, across, b, wide * LANES, c, p->c_down, p->add);
        return;
    }
    real own[TALL * PANEL] = {0};
    tile(tall, wide, p->k, a, down, across, b, wide * LANES, own, wide * LANES, 0);
    for (integer i = 0; i < tall; i++)
        for (integer j = 0; j < width; j++)
            c[i * p->c_down + j] = own[i * wide * LANES + j] + (p->add ? c[i * p->c_down + j] : 0);
}

/* `tall` rows of C, from the row of A that lies at a. */
INLINE void strip(const int tall, const Block *p, const real *a, integer down, integer across, integer row) {
    for (integer j = 0; j < p->n; j += PANEL) {
        const real *b = p->packed + j * p->k;
        real *c = p->c + row * p->c_down + j;
        integer width = smaller(PANEL, p->n - j);
        switch (padded(width) / LANES) {
        case 1: tile_to(tall, 1, width, p, a, down, across, b, c); break;
        case 2: tile_to(tall, 2, width, p, a, down, across, b, c); break;
        default: tile_to(tall, WIDE, width, p, a, down, across, b, c);
        }
    }
}

/* `rows` rows of C, strips of A `next` apart. */
INLINE void strips(const Block *p, const real *a, integer down, integer across, integer next, integer row,
                   integer rows) {
    integer end = row + rows;
    for (; row + TALL <= end; row += TALL, a += next) strip(TALL, p, a, down, across, row);
    if (row + 4 <= end && TALL > 4) {
        strip(4, p, a, down, across, row);
        a += 4 * down, row += 4;
    }
    for (; row < end; row++, a += down) strip(1, p, a, down, across, row);
}

/* A by rows is read where it lies: its rows stay in the first-level cache. Either way has code of
   its own: with steps that it does not know gcc kept some of a tile's sums in memory. */
static void rows_of_block(const void *task, integer piece) {
    const Block *p = task;
    integer first = piece * p->rows, rows = smaller(p->rows, p->m - first);
    const real *a = p->a + first * p->a_down;
    for (integer i = first; p->bias && i < first + rows; i++)
        memcpy(p->c + i * p->c_down, p->bias, p->n * sizeof(real));
    if (p->a_across == 1) {
        strips(p, a, p->a_down, 1, TALL * p->a_down, first, rows);
        return;
    }
    real *own = scratch(OWN, p->rows * p->k * sizeof(real));
    pack_rows(p, a, own, rows);
    strips(p, own, 1, TALL, TALL * p->k, first, rows);
}

/* A (m, k), B (k, n), C (m, n): entry (i, j) of A is at i a_down + j a_across; C has rows.
   bias (n) or NULL: added to each row. */
EXPORT NAME(product)(const real *a, integer a_down, integer a_across, const real *b, integer b_down,
                     integer b_across, real *c, integer c_down, integer m, integer n, integer k,
                     integer add, const real *bias) {
    real *packed = scratch(SHARED, DEPTH * BREADTH * sizeof(real));
    integer depth = 2 * n <= BREADTH ? 2 * DEPTH : DEPTH;
    integer most = a_across == 1 ? 6 : 12; /* strips of a piece: A's columns are read in longer runs */
    integer rows = smaller(most, larger(1, m / (8 * TALL))) * TALL; /* 8 pieces at least, if m allows */
    for (integer j = 0; j < n; j += BREADTH)
        for (integer i = 0; i < k; i += depth) {
            const real *first = bias && !i ? bias + j : NULL;
            Block p = {a + i * a_across, b + i * b_down + j * b_across, c + j, packed, first,
                       a_down, a_across, b_down, b_across, c_down,
                       m, smaller(BREADTH, n - j), smaller(depth, k - i), rows, add || bias || i};
            if (b_across == 1) share(pack_lines, &p, blocks_of(LINES, p.k), p.n * p.k);
            else share(pack_panel, &p, blocks_of(PANEL, p.n), p.n * p.k);
            share(rows_of_block, &p, blocks_of(rows, m), 2 * m * p.n * p.k);
        }
}
