/* y = x W^T for a few rows x and a weight in blocks        see quantized_matmul.py */
#include "blocks.h"
#include "tile.h"

enum { PIECES = 16, FEW = 8 };             /* of a large W: claiming one takes a while; most rows of x */
enum { RUN = 256, PARTS = 32 / LANES };    /* numbers that are decoded at a time; partial sums */

typedef struct {
    const real *x;
    const uint8_t *blocks;
    real *y;
    integer few, m, n;
    integer rows; /* of W in a piece */
} Product;

/* sums += w * x, in PARTS registers; n is a multiple of 32 */
INLINE void add_products(const real *w, const real *x, integer n, vector *sums) {
    vector s[PARTS];
#pragma GCC unroll 16
    for (int p = 0; p < PARTS; p++) s[p] = sums[p];
    for (integer l = 0; l < n; l += 32)
#pragma GCC unroll 16
        for (int p = 0; p < PARTS; p++)
            s[p] += *(const vector *)(w + l + p * LANES) * *(const vector *)(x + l + p * LANES);
#pragma GCC unroll 16
    for (int p = 0; p < PARTS; p++) sums[p] = s[p];
}

INLINE real total(const vector *sums) {
    vector sum = sums[0];
#pragma GCC unroll 16
    for (int p = 1; p < PARTS; p++) sum += sums[p];
    real s[LANES];
    memcpy(s, &sum, sizeof s);
#pragma GCC unroll 16
    for (int half = LANES / 2; half; half /= 2)
#pragma GCC unroll 16
        for (int j = 0; j < half; j++) s[j] += s[j + half];
    return s[0];
}

/* Each block is decoded once for all rows of x: for a single row in registers, one block at a time,
   for several by way of the first cache. */
#define MULTIPLY(name, length, size) \
    static real row_##name(const uint8_t *b, const real *x, integer n) { \
        vector sums[2][PARTS] = {0}; \
        real w[length] __attribute__((aligned(64))), v[length] __attribute__((aligned(64))); \
        for (; n >= 2 * length; n -= 2 * length, x += 2 * length, b += 2 * size) { \
            decode_##name(b, w); \
            add_products(w, x, length, sums[0]); \
            decode_##name(b + size, v); \
            add_products(v, x + length, length, sums[1]); \
        } \
        if (n) { \
            decode_##name(b, w); \
            add_products(w, x, length, sums[0]); \
        } \
        return total(sums[0]) + total(sums[1]); \
    } \
    static void rows_##name(const void *task, integer piece) { \
        const Product *t = task; \
        integer end = smaller((piece + 1) * t->rows, t->m), row = t->n / length * size; \
        real w[RUN] __attribute__((aligned(64))); \
        for (integer i = piece * t->rows; i < end; i++) { \
            const uint8_t *b = t->blocks + i * row; \
            if (t->few == 1) { \
                t->y[i] = row_##name(b, t->x, t->n); \
                continue; \
            } \
            vector sums[FEW][PARTS] = {0}; \
            for (integer k = 0; k < t->n; k += RUN) { \
                integer run = smaller(RUN, t->n - k); \
                for (integer l = 0; l < run; l += length, b += size) decode_##name(b, w + l); \
                for (integer r = 0; r < t->few; r++) \
                    add_products(w, t->x + r * t->n + k, run, sums[r]); \
            } \
            for (integer r = 0; r < t->few; r++) t->y[r * t->m + i] = total(sums[r]); \
        } \
    }
FORMATS(MULTIPLY)

EXPORT NAME(quantized_matmul)(const real *x, const uint8_t *blocks, real *y, integer few, integer m,
                              integer n, integer format) {
    Product t = {x, blocks, y, few, m, n, larger(16, blocks_of(PIECES, m))};
    integer number = 0;
#define CALL(name, length, size) \
    if (format == number++) share(rows_##name, &t, blocks_of(t.rows, m), 2 * few * m * n);
    FORMATS(CALL)
}
