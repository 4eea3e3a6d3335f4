/* y = x W^T for a few rows x and a weight in blocks        see quantized_matmul.py */
#include "blocks.h"
#include "tile.h"

enum { ROWS = 16, FEW = 8 };               /* rows of W in a piece; most rows of x */
enum { RUN = 256, PARTS = 32 / LANES };    /* numbers that are decoded at a time; partial sums */

typedef struct {
    const real *x;
    const uint8_t *blocks;
    real *y;
    integer few, m, n;
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
    real sum = 0;
    for (int j = 0; j < LANES; j++)
        for (int p = 0; p < PARTS; p++) sum += sums[p][j];
    return sum;
}

/* Each block is decoded once, into the first cache, for all rows of x. */
#define MULTIPLY(name, length, size) \
    static void rows_##name(const void *task, integer piece) { \
        const Product *t = task; \
        integer end = smaller((piece + 1) * ROWS, t->m); \
        real w[RUN] __attribute__((aligned(64))); \
        for (integer i = piece * ROWS; i < end; i++) { \
            const uint8_t *b = t->blocks + i * (t->n / length) * size; \
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
    Product t = {x, blocks, y, few, m, n};
    integer number = 0;
#define CALL(name, length, size) \
    if (format == number++) share(rows_##name, &t, blocks_of(ROWS, m), 2 * few * m * n);
    FORMATS(CALL)
}
