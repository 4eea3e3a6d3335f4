/* y = x W^T for a few rows x and weights in blocks        see quantized_matmul.py, quantized_maps.py */
#include "blocks.h"
#include "tile.h"

enum { PIECES = 16, FEW = 8 };             /* of a large W: claiming one takes a while; most rows of x */
enum { RUN = 256, PARTS = 32 / LANES };    /* numbers that are decoded at a time; partial sums */

enum { WEIGHTS = 3 };

typedef struct {
    const uint8_t *blocks;
    real *y;
    integer m;
} Weight;

typedef struct {
    const real *x;
    Weight weights[WEIGHTS];
    integer few, m, n; /* m: of all weights */
    integer rows;      /* of W in a piece */
} Product;

/* The weight that row i of them all is in; i is then the row of this one. */
INLINE const Weight *weight_of(const Product *t, integer *i) {
    const Weight *w = t->weights;
    for (; *i >= w->m; w++) *i -= w->m;
    return w;
}

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
        vector sums[PARTS] = {0}; \
        for (integer k = 0; k < n; k += length, b += size) { \
            real w[length] __attribute__((aligned(64))); \
            decode_##name(b, w); \
            add_products(w, x + k, length, sums); \
        } \
        return total(sums); \
    } \
    static void rows_##name(const void *task, integer piece) { \
        const Product *t = task; \
        integer end = smaller((piece + 1) * t->rows, t->m), row = t->n / length * size; \
        real w[RUN] __attribute__((aligned(64))); \
        for (integer of_all = piece * t->rows; of_all < end; of_all++) { \
            integer i = of_all; \
            const Weight *v = weight_of(t, &i); \
            const uint8_t *b = v->blocks + i * row; \
            if (t->few == 1) { \
                v->y[i] = row_##name(b, t->x, t->n); \
                continue; \
            } \
            vector sums[FEW][PARTS] = {0}; \
            for (integer k = 0; k < t->n; k += RUN) { \
                integer run = smaller(RUN, t->n - k); \
                for (integer l = 0; l < run; l += length, b += size) decode_##name(b, w + l); \
                for (integer r = 0; r < t->few; r++) \
                    add_products(w, t->x + r * t->n + k, run, sums[r]); \
            } \
            for (integer r = 0; r < t->few; r++) v->y[r * v->m + i] = total(sums[r]); \
        } \
    }
FORMATS(MULTIPLY)

/* y: (few, m) of the first weight, then those of the others, whose m may be 0 */
EXPORT NAME(quantized_matmul)(const real *x, real *y, integer few, integer n, integer format,
                              const uint8_t *first, integer m1, const uint8_t *second, integer m2,
                              const uint8_t *third, integer m3) {
    integer m = m1 + m2 + m3, number = 0;
    Product t = {x, {{first, y, m1}, {second, y + few * m1, m2}, {third, y + few * (m1 + m2), m3}},
                 few, m, n, larger(16, blocks_of(PIECES, m))};
#define CALL(name, length, size) \
    if (format == number++) share(rows_##name, &t, blocks_of(t.rows, m), 2 * few * m * n);
    FORMATS(CALL)
}
