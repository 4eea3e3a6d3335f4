/* bfloat16: conversion, and products that accumulate in float32        see half.py, product.py

   A bfloat16 is the upper half of a float32. Two that follow one another along k make a pair, one
   32-bit word; a product of pairs is a product of words with k / 2 of them, so that the blocks are
   those of product.c. AMX multiplies and adds 16 by 16 by 16 pairs in one instruction, avx512_bf16 a
   register of them; without either each half of a word becomes a float32 by a shift or a mask. */
#include "amx.h"
#include "tile.h"

#ifdef REAL_IS_FLOAT

typedef union {
    float value;
    uint32_t bits;
} Word;

enum { ENTRIES = 16384 }; /* of a piece */

typedef struct {
    const void *from;
    void *to;
    integer n;
} Cast;

static void widen_piece(const void *task, integer piece) {
    const Cast *p = task;
    integer first = piece * ENTRIES;
    widen((const bf16 *)p->from + first, (float *)p->to + first, smaller(ENTRIES, p->n - first));
}

static void narrow_piece(const void *task, integer piece) {
    const Cast *p = task;
    integer first = piece * ENTRIES;
    narrow((const float *)p->from + first, (bf16 *)p->to + first, smaller(ENTRIES, p->n - first));
}

EXPORT widen_float(const bf16 *x, float *y, integer n) {
    Cast p = {x, y, n};
    share(widen_piece, &p, blocks_of(ENTRIES, n), n);
}

EXPORT narrow_float(const float *x, bf16 *y, integer n) {
    Cast p = {x, y, n};
    share(narrow_piece, &p, blocks_of(ENTRIES, n), n);
}

/* ------------------------------------------------------------------------------------- products */

typedef uint32_t pair __attribute__((aligned(2), may_alias));
typedef uint32_t pairs __attribute__((vector_size(REGISTER), aligned(4), may_alias));

enum { PANEL = WIDE * LANES, DEPTH = 256, BREADTH = 768 / PANEL * PANEL }; /* DEPTH in pairs */

typedef struct {
    const bf16 *a, *b;
    float *c;
    uint32_t *packed;
    integer a_down, a_across, b_down, b_across, c_down; /* in bfloat16s, and float32s of C */
    integer m, n, k;                                    /* of this block; k of single numbers */
    integer rows;  /* of A in a piece of work */
    integer panel; /* columns of B that lie side by side */
    integer deep;  /* pairs of k, with the zeros that fill a tile */
    int add;
} Block;

INLINE integer pairs_of(integer k) { return (k + 1) / 2; }

/* Pair p of a row or column whose entries are `across` apart; 0 behind the k-th entry. */
INLINE uint32_t pair_at(const bf16 *x, integer across, integer p, integer k) {
    uint32_t even = 2 * p < k ? x[2 * p * across] : 0;
    return even | (2 * p + 1 < k ? (uint32_t)x[(2 * p + 1) * across] << 16 : 0);
}

/* Two rows (columns) of numbers as one of pairs. */
INLINE void interleave(const bf16 *restrict even, const bf16 *restrict odd, uint32_t *restrict to, integer n) {
#pragma omp simd
    for (integer l = 0; l < n; l++) to[l] = even[l] | (uint32_t)odd[l] << 16;
}

static void pack_panel(const void *task, integer panel) {
    const Block *p = task;
    integer j = panel * p->panel, width = smaller(p->panel, padded(p->n - j));
    integer filled = smaller(width, p->n - j), deep = p->deep;
    uint32_t *restrict to = p->packed + j * deep;
    const bf16 *restrict from = p->b + j * p->b_across;
    if (p->b_across == 1) {
        for (integer i = 0; i < deep; i++) {
            const bf16 *even = from + 2 * i * p->b_down;
            integer done = 2 * i < p->k ? filled : 0;
            fetch(even + 2 * LEAD * p->b_down, done * sizeof(bf16));
            fetch(even + (2 * LEAD + 1) * p->b_down, done * sizeof(bf16));
            if (2 * i + 1 < p->k) interleave(even, even + p->b_down, to + i * width, done);
            else
                for (integer l = 0; l < done; l++) to[i * width + l] = even[l];
            memset(to + i * width + done, 0, (width - done) * sizeof(uint32_t));
        }
        return;
    }
    for (integer i = 0; i < deep; i += LANES)
        for (integer l = 0; l < width; l += LANES) {
            const bf16 *x = from + l * p->b_across;
            if (p->b_down == 1 && l + LANES <= filled && 2 * (i + LANES) <= p->k) {
                uint32_t square[LANES * LANES];
                for (int e = 0; e < LANES; e++)
                    memcpy(square + e * LANES, x + e * p->b_across + 2 * i, sizeof(vector));
                transpose_square((const number *)square, LANES, (number *)(to + i * width + l), width);
                continue;
            }
            for (integer r = i; r < smaller(i + LANES, deep); r++)
                for (integer e = 0; e < LANES; e++)
                    to[r * width + l + e] =
                        l + e < filled ? pair_at(x + e * p->b_across, p->b_down, r, p->k) : 0;
        }
}

/* As in product.c: where A is stored by columns, all strips of a few pairs of columns. */
static void pack_rows(const Block *p, const bf16 *restrict a, uint32_t *restrict to, integer rows) {
    integer deep = pairs_of(p->k), across = p->a_across;
    integer whole = p->a_down == 1 ? rows / TALL * TALL : 0, both = whole ? p->k / 2 : 0;
    for (integer first = 0; first < both; first += LEAD) {
        integer end = smaller(first + LEAD, both);
        for (integer i = 2 * (first + LEAD); i < 2 * (end + LEAD); i++)
            fetch(a + i * across, whole * sizeof(bf16));
        for (integer r = 0; r < whole; r += TALL)
            for (integer i = first; i < end; i++) {
                const bf16 *even = a + r + 2 * i * across;
                interleave(even, even + across, to + r * deep + i * TALL, TALL);
            }
    }
    for (integer i = 0; i < deep; i++)
        for (integer r = i < both ? whole : 0; r < rows; r++)
            to[r / TALL * TALL * deep + i * TALL + r % TALL] = pair_at(a + r * p->a_down, across, i, p->k);
}

/* acc + a b of both halves of each word. */
INLINE vector multiply_pairs(const int native, vector acc, uint32_t a, pairs b) {
#ifdef __AVX512F__
    if (native) {
        pairs all = a - (pairs){0};
        __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(b), "v"(all));
        return acc;
    }
#endif
    Word low = {.bits = a << 16}, high = {.bits = a & 0xFFFF0000};
    return acc + low.value * (vector)(b << 16) + high.value * (vector)(b & 0xFFFF0000);
}

INLINE void pair_tile(const int native, const int tall, const int wide, integer k, const bf16 *a,
                      integer down, integer across, const uint32_t *b, float *c, integer ldc, int add) {
    vector acc[TALL][WIDE];
#pragma GCC unroll 8
    for (int i = 0; i < tall; i++)
#pragma GCC unroll 4
        for (int j = 0; j < wide; j++) acc[i][j] = (vector){0};
    for (integer p = 0; p < k; p++) {
        pairs row[WIDE];
#pragma GCC unroll 4
        for (int j = 0; j < wide; j++) row[j] = *(const pairs *)(b + (p * wide + j) * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < tall; i++) {
            uint32_t word = *(const pair *)(a + i * down + p * across);
#pragma GCC unroll 4
            for (int j = 0; j < wide; j++) acc[i][j] = multiply_pairs(native, acc[i][j], word, row[j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < tall; i++)
#pragma GCC unroll 4
        for (int j = 0; j < wide; j++) {
            vector *at = (vector *)(c + i * ldc + LANES * j);
            if (add) *at += acc[i][j];
            else *at = acc[i][j];
        }
}

/* Through a tile of its own where C has fewer columns than registers hold. */
INLINE void tile_to(const int native, const int tall, const int wide, integer width, const Block *p,
                    const bf16 *a, integer down, integer across, const uint32_t *b, float *c) {
    integer deep = pairs_of(p->k);
    if (width == wide * LANES) {
        pair_tile(native, tall, wide, deep, a, down, across, b, c, p->c_down, p->add);
        return;
    }
    float own[TALL * PANEL] = {0};
    pair_tile(native, tall, wide, deep, a, down, across, b, own, wide * LANES, 0);
    for (integer i = 0; i < tall; i++)
        for (integer j = 0; j < width; j++)
            c[i * p->c_down + j] = own[i * wide * LANES + j] + (p->add ? c[i * p->c_down + j] : 0);
}

INLINE void strip(const int native, const int tall, const Block *p, const bf16 *a, integer down,
                  integer across, integer row) {
    for (integer j = 0; j < p->n; j += PANEL) {
        const uint32_t *b = p->packed + j * pairs_of(p->k);
        float *c = p->c + row * p->c_down + j;
        integer width = smaller(PANEL, p->n - j);
        switch (padded(width) / LANES) {
        case 1: tile_to(native, tall, 1, width, p, a, down, across, b, c); break;
        case 2: tile_to(native, tall, 2, width, p, a, down, across, b, c); break;
        default: tile_to(native, tall, WIDE, width, p, a, down, across, b, c);
        }
    }
}

INLINE void strips(const int native, const Block *p, const bf16 *a, integer down, integer across, integer next,
                   integer row, integer rows) {
    integer end = row + rows;
    for (; row + TALL <= end; row += TALL, a += next) strip(native, TALL, p, a, down, across, row);
    for (; row < end; row++, a += down) strip(native, 1, p, a, down, across, row);
}

INLINE void rows_of_block(const int native, const Block *p, integer piece) {
    integer first = piece * p->rows, rows = smaller(p->rows, p->m - first), deep = pairs_of(p->k);
    const bf16 *a = p->a + first * p->a_down;
    if (p->a_across == 1 && p->k % 2 == 0) {
        strips(native, p, a, p->a_down, 2, TALL * p->a_down, first, rows);
        return;
    }
    uint32_t *own = scratch(OWN, p->rows * deep * sizeof(uint32_t));
    pack_rows(p, a, own, rows);
    strips(native, p, (const bf16 *)own, 2, 2 * TALL, 2 * TALL * deep, first, rows);
}

static void rows_native(const void *task, integer piece) { rows_of_block(1, task, piece); }
static void rows_portable(const void *task, integer piece) { rows_of_block(0, task, piece); }

static int has_bf16(void) {
#ifdef __AVX512F__
    static int known = -1;
    if (known < 0) {
        __builtin_cpu_init();
        known = __builtin_cpu_supports("avx512bf16") != 0;
    }
    return known;
#else
    return 0;
#endif
}

/* ------------------------------------------------------------------------------------- by tiles

   AMX has eight tiles of 16 rows by 64 bytes. A tile of A holds 16 pairs of each of 16 rows, one of B
   16 rows of pairs of 16 columns, one of C their sums. Tiles 0 1 2 3 are C's, two by two, 4 5 A's and
   6 7 B's: each that is loaded serves two products. A panel of B (32 KB) stays in the first-level
   cache while the rows of a piece pass, which come from the second level: they are read where they
   lie, and some multiples of a power of two apart would not stay in the first together. At the edges
   of C tiles have fewer rows and columns; only along k are zeros put in. */

enum { SIDE = 16, BOTH = 2 * SIDE };

#ifdef TILE_LOAD

typedef struct {
    uint8_t palette, start, unused[14];
    uint16_t bytes[16]; /* of a row of each tile */
    uint8_t rows[16];
} Shapes;

static void configure(integer rows, integer columns) {
    Shapes s = {.palette = 1};
    integer tall[2] = {smaller(SIDE, rows), larger(0, rows - SIDE)};
    integer wide[2] = {smaller(SIDE, columns), larger(0, columns - SIDE)};
    for (int t = 0; t < 8; t++) { /* a tile without rows must have no columns either */
        integer down = t < 4 ? tall[t / 2] : t < 6 ? tall[t - 4] : SIDE;
        integer across = t < 4 ? wide[t % 2] : t < 6 ? SIDE : wide[t - 6];
        if (down && across) s.rows[t] = down, s.bytes[t] = across * sizeof(float);
    }
    TILES_CONFIGURE(&s);
}

/* 16 pairs deep: a and b are the first of the rows of A's tiles and of B's. */
INLINE void tile_step(const int tall, const int wide, const char *a, integer down, const uint32_t *b,
                      integer width) {
    integer line = width * sizeof(uint32_t);
    TILE_LOAD(6, b, line);
    TILE_LOAD(4, a, down);
    TILE_MULTIPLY(0, 4, 6);
    if (wide > 1) {
        TILE_LOAD(7, b + SIDE, line);
        TILE_MULTIPLY(1, 4, 7);
    }
    if (tall > 1) {
        TILE_LOAD(5, a + SIDE * down, down);
        TILE_MULTIPLY(2, 5, 6);
        if (wide > 1) TILE_MULTIPLY(3, 5, 7);
    }
}

#define EACH_SUM(DO)                                                \
    do {                                                            \
        DO(0, c, line);                                             \
        if (wide > 1) DO(1, c + SIDE, line);                        \
        if (tall > 1) {                                             \
            DO(2, c + SIDE * p->c_down, line);                      \
            if (wide > 1) DO(3, c + SIDE * p->c_down + SIDE, line); \
        }                                                           \
    } while (0)
#define CLEAR(t, c, line) TILE_ZERO(t)

/* Up to 32 by 32 sums: `whole` steps with A as it lies, the others with what was packed of it. */
INLINE void sums(const int tall, const int wide, const Block *p, const bf16 *a, integer whole,
                 const uint32_t *packed, integer left, const uint32_t *b, integer width, float *c) {
    integer line = p->c_down * sizeof(float);
    if (p->add) EACH_SUM(TILE_LOAD);
    else EACH_SUM(CLEAR);
    for (integer s = 0; s < whole; s++, b += SIDE * width)
        tile_step(tall, wide, (const char *)(a + BOTH * s), p->a_down * sizeof(bf16), b, width);
    for (integer i = 0; i < left; i += SIDE, b += SIDE * width)
        tile_step(tall, wide, (const char *)(packed + i), left * sizeof(uint32_t), b, width);
    EACH_SUM(TILE_STORE);
}

/* Rows of A, pairs from the first-th on, zeros behind the last. */
static void pack_pairs(const Block *p, const bf16 *a, integer first, uint32_t *to, integer rows) {
    integer left = p->deep - first;
    for (integer i = 0; i < left; i += LANES) /* rows within: where A is stored by columns they follow */
        for (integer r = 0; r < rows; r += LANES) {
            const bf16 *from = a + r * p->a_down;
            uint32_t *at = to + r * left + i;
            if (p->a_down == 1 && r + LANES <= rows && 2 * (first + i + LANES) <= p->k) {
                uint32_t square[LANES * LANES];
                for (int e = 0; e < LANES; e++) {
                    const bf16 *even = from + 2 * (first + i + e) * p->a_across;
                    interleave(even, even + p->a_across, square + e * LANES, LANES);
                }
                transpose_square((const number *)square, LANES, (number *)at, left);
                continue;
            }
            for (integer e = 0; e < smaller(LANES, rows - r); e++)
                for (integer l = 0; l < LANES; l++)
                    at[e * left + l] = pair_at(from + e * p->a_down, p->a_across, first + i + l, p->k);
        }
}

/* The tiles are the thread's own: each piece configures them, and leaves none to be saved. */
static void rows_by_tiles(const void *task, integer piece) {
    const Block *p = task;
    integer first = piece * p->rows, many = smaller(p->rows, p->m - first), shape = 0;
    integer whole = p->a_across == 1 ? p->k / BOTH : 0, left = p->deep - SIDE * whole;
    const bf16 *a = p->a + first * p->a_down;
    uint32_t *own = scratch(OWN, p->rows * left * sizeof(uint32_t));
    pack_pairs(p, a, SIDE * whole, own, many);
    for (integer j = 0; j < p->n; j += BOTH)
        for (integer r = 0; r < many; r += BOTH) {
            integer tall = smaller(BOTH, many - r), wide = smaller(BOTH, p->n - j), width = padded(wide);
            const bf16 *x = a + r * p->a_down;
            const uint32_t *packed = own + r * left, *b = p->packed + j * p->deep;
            float *c = p->c + (first + r) * p->c_down + j;
            if (shape != tall * BOTH + wide) configure(tall, wide), shape = tall * BOTH + wide;
            switch (2 * (tall > SIDE) + (wide > SIDE)) {
            case 0: sums(1, 1, p, x, whole, packed, left, b, width, c); break;
            case 1: sums(1, 2, p, x, whole, packed, left, b, width, c); break;
            case 2: sums(2, 1, p, x, whole, packed, left, b, width, c); break;
            default: sums(2, 2, p, x, whole, packed, left, b, width, c);
            }
        }
    TILES_RELEASE();
}

static const Work by_tiles = rows_by_tiles;
#else
static const Work by_tiles = NULL;
#endif

/* As product, of A and B in bfloat16 with C in float32. `by`: 2 AMX, which the caller has asked for
   (tiles_allowed); 1 avx512_bf16 if it is there; 0 neither. */
EXPORT half_product_float(const bf16 *a, integer a_down, integer a_across, const bf16 *b, integer b_down,
                          integer b_across, float *c, integer c_down, integer m, integer n, integer k,
                          integer add, integer by) {
    int tiles = by == 2 && by_tiles;
    Work work = tiles ? by_tiles : by && has_bf16() ? rows_native : rows_portable;
    uint32_t *packed = scratch(SHARED, DEPTH * BREADTH * sizeof(uint32_t));
    integer depth = 2 * (2 * n <= BREADTH && !tiles ? 2 * DEPTH : DEPTH);
    integer panel = tiles ? BOTH : PANEL, tall = tiles ? BOTH : TALL;
    integer most = tiles ? 4 : a_across == 1 ? 6 : 12; /* strips of a piece */
    integer rows = smaller(most, larger(1, m / (8 * tall))) * tall;
    for (integer j = 0; j < n; j += BREADTH)
        for (integer i = 0; i < k; i += depth) {
            integer deep = smaller(depth, k - i);
            Block p = {a + i * a_across, b + i * b_down + j * b_across, c + j, packed,
                       a_down, a_across, b_down, b_across, c_down,
                       m, smaller(BREADTH, n - j), deep, rows,
                       panel, tiles ? blocks_of(BOTH, deep) * SIDE : pairs_of(deep), add || i};
            share(pack_panel, &p, blocks_of(panel, p.n), p.n * p.k);
            share(work, &p, blocks_of(rows, m), 2 * m * p.n * p.k);
        }
}

#endif
