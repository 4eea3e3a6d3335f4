/* y = x W^T for a few rows x and weights in blocks        see quantized_matmul.py, quantized_maps.py */
#include "blocks.h"
#include "few.h"

/* Each block is decoded once for all rows of x: for a single row in registers, one block at a time,
   for several by way of the first cache. */
#define MULTIPLY(name, length, size) \
    static real row_##name(const uint8_t *b, const real *x, integer n) { \
        vector sums[PARTS] = {0}; \
        for (integer k = 0; k < n; k += length, b += size) \
            EACH_PART(length) { \
                real w[32] __attribute__((aligned(64))); \
                decode_##name(b, s, w); \
                add_products(w, x + k + 32 * s, 32, sums); \
            } \
        return total(sums); \
    } \
    static void rows_##name(const void *task, integer piece) { \
        const FewRows *t = task; \
        integer end = smaller((piece + 1) * t->piece, t->m), row = t->n / length * size; \
        real w[RUN] __attribute__((aligned(64))); \
        for (integer of_all = piece * t->piece; of_all < end; of_all++) { \
            integer i = of_all; \
            const Weight *weight = weight_of(t, &i); \
            const uint8_t *b = (const uint8_t *)weight->rows + i * row; \
            if (t->few == 1) { \
                weight->y[i] = row_##name(b, t->x, t->n); \
                continue; \
            } \
            vector sums[FEW][PARTS] = {0}; \
            for (integer k = 0; k < t->n; k += RUN) { \
                integer run = smaller(RUN, t->n - k); \
                for (integer l = 0; l < run; l += length, b += size) \
                    EACH_PART(length) decode_##name(b, s, w + l + 32 * s); \
                for (integer r = 0; r < t->few; r++) \
                    add_products(w, t->x + r * t->n + k, run, sums[r]); \
            } \
            for (integer r = 0; r < t->few; r++) weight->y[r * weight->m + i] = total(sums[r]); \
        } \
    }
FORMATS(MULTIPLY)

EXPORT NAME(quantized_matmul)(const real *x, real *y, integer few, integer n, integer format,
                              const uint8_t *first, integer m1, const uint8_t *second, integer m2,
                              const uint8_t *third, integer m3) {
    FewRows t = few_rows_of(x, y, few, n, first, m1, second, m2, third, m3);
    integer number = 0;
#define CALL(name, length, size) \
    if (format == number++) share(rows_##name, &t, blocks_of(t.piece, t.m), 2 * few * t.m * n);
    FORMATS(CALL)
}
