/* bfloat16: conversion, and products that accumulate in float32        see half.py, product.py

   A bfloat16 is the upper half of a float32. Two that follow one another along k make a pair, one
   32-bit word; a product of pairs is a product of words with k / 2 of them, so that the blocks are
   those of product.c. avx512_bf16 multiplies and adds a register of pairs in one instruction;
   without it each half of a word becomes a float32 by a shift or a mask. */
#include "tile.h"

#ifdef REAL_IS_FLOAT

typedef uint16_t bf16;
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
    const bf16 *from = p->from;
    uint32_t *to = p->to;
    integer end = smaller((piece + 1) * ENTRIES, p->n);
#pragma omp simd
    for (integer i = piece * ENTRIES; i < end; i++) to[i] = (uint32_t)from[i] << 16;
}

/* To the nearest, ties to even; a NaN stays one. */
static void narrow_piece(const void *task, integer piece) {
    const Cast *p = task;
    const uint32_t *from = p->from;
    bf16 *to = p->to;
    integer end = smaller((piece + 1) * ENTRIES, p->n);
#pragma omp simd
    for (integer i = piece * ENTRIES; i < end; i++) {
        uint32_t x = from[i], rounded = (x + 0x7FFF + ((x >> 16) & 1)) >> 16;
        to[i] = (x & 0x7FFFFFFF) > 0x7F800000 ? (x >> 16) | 0x40 : rounded;
    }
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
    integer rows;
    int add;
} Block;

INLINE integer pairs_of(integer k) { return (k + 1) / 2; }

/* Pair p of a row or column whose entries are `across` apart; 0 behind the k-th entry. */
INLINE uint32_t pair_at(const bf16 *x, integer across, integer p, integer k) {
    return x[2 * p * across] | (2 * p + 1 < k ? (uint32_t)x[(2 * p + 1) * across] << 16 : 0);
}

static void pack_panel(const void *task, integer panel) {
    const Block *p = task;
    integer j = panel * PANEL, width = smaller(PANEL, padded(p->n - j));
    integer filled = smaller(width, p->n - j), deep = pairs_of(p->k);
    uint32_t *restrict to = p->packed + j * deep;
    const bf16 *restrict from = p->b + j * p->b_across;
    if (p->b_across == 1) {
        for (integer i = 0; i < deep; i++) {
            const bf16 *even = from + 2 * i * p->b_down, *odd = even + p->b_down;
            if (2 * i + 1 < p->k)
#pragma omp simd
                for (integer l = 0; l < filled; l++) to[i * width + l] = even[l] | (uint32_t)odd[l] << 16;
            else
                for (integer l = 0; l < filled; l++) to[i * width + l] = even[l];
            memset(to + i * width + filled, 0, (width - filled) * sizeof(uint32_t));
        }
        return;
    }
    for (integer i = 0; i < deep; i += LANES)
        for (integer l = 0; l < width; l++)
            for (integer r = i; r < smaller(i + LANES, deep); r++) {
                const bf16 *x = from + l * p->b_across;
                integer whole = p->b_down == 1 && 2 * r + 1 < p->k;
                to[r * width + l] = l >= filled ? 0
                                    : whole ? *(const pair *)(x + 2 * r) : pair_at(x, p->b_down, r, p->k);
            }
}

static void pack_rows(const Block *p, const bf16 *restrict a, uint32_t *restrict to, integer rows) {
    integer deep = pairs_of(p->k);
    for (integer i = 0; i < deep; i++) {
        integer r = 0;
        if (p->a_down == 1 && 2 * i + 1 < p->k) {
            const bf16 *even = a + 2 * i * p->a_across, *odd = even + p->a_across;
            for (; r + TALL <= rows; r += TALL)
#pragma omp simd
                for (integer l = 0; l < TALL; l++)
                    to[r * deep + i * TALL + l] = even[r + l] | (uint32_t)odd[r + l] << 16;
        }
        for (; r < rows; r++)
            to[r / TALL * TALL * deep + i * TALL + r % TALL] =
                pair_at(a + r * p->a_down, p->a_across, i, p->k);
    }
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

INLINE void rows_of_block(const int native, const Block *p, integer piece) {
    integer first = piece * p->rows, many = smaller(p->rows, p->m - first), r = 0;
    const bf16 *a = p->a + first * p->a_down;
    integer down = p->a_down, across = 2, next = TALL * down;
    if (p->a_across != 1 || p->k % 2) {
        uint32_t *own = scratch(OWN, blocks_of(TALL, p->rows) * TALL * pairs_of(p->k) * sizeof(uint32_t));
        pack_rows(p, a, own, many);
        a = (const bf16 *)own, down = 2, across = 2 * TALL, next = 2 * TALL * pairs_of(p->k);
    }
    for (; r + TALL <= many; r += TALL, a += next) strip(native, TALL, p, a, down, across, first + r);
    for (; r < many; r++, a += down) strip(native, 1, p, a, down, across, first + r);
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

/* As product, of A and B in bfloat16 with C in float32. `native`: use avx512_bf16 if it is there. */
EXPORT half_product_float(const bf16 *a, integer a_down, integer a_across, const bf16 *b, integer b_down,
                          integer b_across, float *c, integer c_down, integer m, integer n, integer k,
                          integer add, integer native) {
    uint32_t *packed = scratch(SHARED, DEPTH * BREADTH * sizeof(uint32_t));
    integer depth = 2 * (2 * n <= BREADTH ? 2 * DEPTH : DEPTH);
    integer rows = smaller(6, larger(1, m / (8 * TALL))) * TALL;
    for (integer j = 0; j < n; j += BREADTH)
        for (integer i = 0; i < k; i += depth) {
            Block p = {a + i * a_across, b + i * b_down + j * b_across, c + j, packed,
                       a_down, a_across, b_down, b_across, c_down,
                       m, smaller(BREADTH, n - j), smaller(depth, k - i), rows, add || i};
            share(pack_panel, &p, blocks_of(PANEL, p.n), p.n * p.k);
            share(native && has_bf16() ? rows_native : rows_portable, &p, blocks_of(rows, m),
                  2 * m * p.n * p.k);
        }
}

#endif
