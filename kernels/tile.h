/* A matrix product small enough to stay in cache: C = A B, or C += A B, by tiles in registers. */
#pragma once
#include "common.h"

/* The width of a register, and the tile (TALL rows of WIDE registers) that fills the registers
   of the level that this is compiled for: wider vectors than it has would spill to memory. */
#if defined(__AVX512F__)
#define REGISTER 64
enum { TALL = 8, WIDE = 3 };
#elif defined(__AVX2__)
#define REGISTER 32
enum { TALL = 4, WIDE = 3 };
#else
#define REGISTER 16
enum { TALL = 4, WIDE = 2 };
#endif

typedef real number __attribute__((may_alias)); /* or what has its size */
typedef real vector __attribute__((vector_size(REGISTER), aligned(sizeof(real)), may_alias));
enum { LANES = REGISTER / sizeof(real) };

/* A square of LANES by LANES numbers, transposed in registers: at step s the numbers whose row and
   column differ in that bit change places. */
INLINE void transpose_square(const number *x, integer stride, number *to, integer wide) {
#ifdef __clang__
    for (int j = 0; j < LANES; j++)
        for (int i = 0; i < LANES; i++) to[j * wide + i] = x[i * stride + j];
#else
    typedef __typeof__((vector){0} == (vector){0}) places;
    vector row[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) row[i] = *(const vector *)(x + i * stride);
#pragma GCC unroll 4
    for (int s = 1; s < LANES; s *= 2) {
        places low, high;
#pragma GCC unroll 16
        for (int e = 0; e < LANES; e++) {
            low[e] = e & s ? LANES + e - s : e;
            high[e] = e & s ? LANES + e : e + s;
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) {
            if (i & s) continue;
            vector a = row[i], b = row[i + s];
            row[i] = __builtin_shuffle(a, b, low);
            row[i + s] = __builtin_shuffle(a, b, high);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) *(vector *)(to + i * wide) = row[i];
#endif
}

/* Of a register's numbers, by halves. */
INLINE real sum_of(vector sum) {
    typedef real quarter __attribute__((vector_size(16)));
    union { vector whole; quarter part[REGISTER / 16]; } x = {sum};
#pragma GCC unroll 2
    for (int half = REGISTER / 32; half; half /= 2)
#pragma GCC unroll 2
        for (int i = 0; i < half; i++) x.part[i] += x.part[i + half];
    quarter last = x.part[0];
#ifdef REAL_IS_FLOAT
    return (last[0] + last[2]) + (last[1] + last[3]);
#else
    return last[0] + last[1];
#endif
}

INLINE integer padded(integer n) { return (n + LANES - 1) / LANES * LANES; }

/* Asks for bytes that are packed LEAD rows or columns later: short runs, too far apart for the
   hardware to foresee them. */
enum { LEAD = 8 };
INLINE void fetch(const void *from, integer bytes) {
    for (integer i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)from + i);
    __builtin_prefetch((const char *)from + bytes - 1);
}

/* One tile: `tall` rows of `wide` registers of C. The loops over them unroll: acc is registers. */
INLINE void tile(const int tall, const int wide, integer k, const real *a, integer down,
                 integer across, const real *b, integer ldb, real *c, integer ldc, int add) {
    vector acc[TALL][WIDE];
#pragma GCC unroll 8
    for (int i = 0; i < tall; i++)
#pragma GCC unroll 4
        for (int j = 0; j < wide; j++) acc[i][j] = (vector){0};
    for (integer p = 0; p < k; p++) {
        vector row[WIDE];
#pragma GCC unroll 4
        for (int j = 0; j < wide; j++) row[j] = *(const vector *)(b + p * ldb + LANES * j);
#pragma GCC unroll 8
        for (int i = 0; i < tall; i++)
#pragma GCC unroll 4
            for (int j = 0; j < wide; j++) acc[i][j] += a[i * down + p * across] * row[j];
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

INLINE void panel(const int wide, integer m, integer k, const real *a, integer down,
                  integer across, const real *b, integer ldb, real *c, integer ldc, int add) {
    integer i = 0;
    for (; i + TALL <= m; i += TALL)
        tile(TALL, wide, k, a + i * down, down, across, b, ldb, c + i * ldc, ldc, add);
    for (; i < m; i++) tile(1, wide, k, a + i * down, down, across, b, ldb, c + i * ldc, ldc, add);
}

/* C (m, n) = A (m, k) B (k, n), added to C if `add`. n is a multiple of LANES.
   A's entry (i, p) is at i * down + p * across (so it may be transposed); B and C have rows. */
INLINE void multiply(integer m, integer n, integer k, const real *a, integer down, integer across,
                     const real *b, integer ldb, real *c, integer ldc, int add) {
    integer j = 0;
    for (; j + WIDE * LANES <= n; j += WIDE * LANES)
        panel(WIDE, m, k, a, down, across, b + j, ldb, c + j, ldc, add);
    if (j + 2 * LANES <= n) {
        panel(2, m, k, a, down, across, b + j, ldb, c + j, ldc, add);
        j += 2 * LANES;
    }
    if (j < n) panel(1, m, k, a, down, across, b + j, ldb, c + j, ldc, add);
}
