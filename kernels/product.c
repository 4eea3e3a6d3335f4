/* C = A B, or C += A B, of any strides, by tiles in registers        see product.py

   Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication", for two caches:
   B is cut into blocks (DEPTH by BREADTH) that stay in the second-level cache, packed in panels
   that a tile reads line by line; a few rows of A at a time stay in the first-level cache. */
#include "tile.h"

enum {
    PANEL = WIDE * LANES,                          /* columns of B that a tile takes */
    DEPTH = 1024 / sizeof(real),                   /* rows of B in a block */
    BREADTH = 3072 / sizeof(real) / PANEL * PANEL, /* columns of B in a block: 768 KB in all */
};

typedef struct {
    const real *a, *b;
    real *c, *packed;
    integer a_down, a_across, b_down, b_across, c_down; /* entries to the next row, next column */
    integer m, n, k;                                    /* of this block */
    integer rows;                                       /* of A in a piece of work */
    int add;
} Block;

/* Columns j to j + width of B (k rows) side by side, zeros where B has no more. */
static void pack_panel(const void *task, integer panel) {
    const Block *p = task;
    integer j = panel * PANEL, width = smaller(PANEL, padded(p->n - j)), filled = smaller(width, p->n - j);
    real *restrict to = p->packed + j * p->k;
    const real *restrict from = p->b + j * p->b_across;
    if (p->b_across == 1) {
        for (integer i = 0; i < p->k; i++) {
            memcpy(to + i * width, from + i * p->b_down, filled * sizeof(real));
            memset(to + i * width + filled, 0, (width - filled) * sizeof(real));
        }
        return;
    }
    integer squares = p->b_down == 1 ? filled / LANES * LANES : 0, deep = p->k / LANES * LANES;
    for (integer l = 0; l < squares; l += LANES)
        for (integer i = 0; i < deep; i += LANES)
            transpose_square(from + l * p->b_across + i, p->b_across, to + i * width + l, width);
    for (integer i = 0; i < p->k; i++)
        for (integer l = i < deep ? squares : 0; l < width; l++)
            to[i * width + l] = l < filled ? from[l * p->b_across + i * p->b_down] : 0;
}

/* `rows` rows of A, TALL at a time, their columns one after another: what a tile reads in order.
   All strips at once, for where A is stored by columns a line holds entries of several. */
static void pack_rows(const Block *p, const real *restrict a, real *restrict to, integer rows) {
    for (integer i = 0; i < p->k; i++) {
        const real *column = a + i * p->a_across;
        integer r = 0;
        if (p->a_down == 1)
            for (; r + TALL <= rows; r += TALL)
                memcpy(to + r * p->k + i * TALL, column + r, TALL * sizeof(real));
        for (; r < rows; r++) to[r / TALL * TALL * p->k + i * TALL + r % TALL] = column[r * p->a_down];
    }
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

/* A by rows is read where it lies: its rows stay in the first-level cache. */
static void rows_of_block(const void *task, integer piece) {
    const Block *p = task;
    integer first = piece * p->rows, many = smaller(p->rows, p->m - first), r = 0;
    const real *a = p->a + first * p->a_down;
    integer down = p->a_down, across = p->a_across, next = TALL * down;
    if (across != 1) {
        real *own = scratch(OWN, p->rows * p->k * sizeof(real));
        pack_rows(p, a, own, many);
        a = own, down = 1, across = TALL, next = TALL * p->k;
    }
    for (; r + TALL <= many; r += TALL, a += next) strip(TALL, p, a, down, across, first + r);
    if (r + 4 <= many && TALL > 4) {
        strip(4, p, a, down, across, first + r);
        a += 4 * down, r += 4;
    }
    for (; r < many; r++, a += down) strip(1, p, a, down, across, first + r);
}

/* A (m, k), B (k, n), C (m, n): entry (i, j) of A is at i a_down + j a_across; C has rows. */
EXPORT NAME(product)(const real *a, integer a_down, integer a_across, const real *b, integer b_down,
                     integer b_across, real *c, integer c_down, integer m, integer n, integer k,
                     integer add) {
    real *packed = scratch(SHARED, DEPTH * BREADTH * sizeof(real));
    integer depth = 2 * n <= BREADTH ? 2 * DEPTH : DEPTH;
    integer rows = smaller(6, larger(1, m / (8 * TALL))) * TALL; /* 8 pieces at least, if m allows */
    for (integer j = 0; j < n; j += BREADTH)
        for (integer i = 0; i < k; i += depth) {
            Block p = {a + i * a_across, b + i * b_down + j * b_across, c + j, packed,
                       a_down, a_across, b_down, b_across, c_down,
                       m, smaller(BREADTH, n - j), smaller(depth, k - i), rows, add || i};
            share(pack_panel, &p, blocks_of(PANEL, p.n), p.n * p.k);
            share(rows_of_block, &p, blocks_of(rows, m), 2 * m * p.n * p.k);
        }
}
