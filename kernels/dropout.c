/* y = x / (1 - p), or 0 where a random word is below 2^32 p        see dropout.py */
#include "common.h"

enum { LOT = 16, BLOCKS = 1024 }; /* Philox blocks side by side; in a piece */

typedef struct {
    const real *x;
    real *y, scale;
    integer n, threshold;
    uint64_t key;
} Drop;

/* Ten rounds of Philox4x32 on LOT counters (first + l, 0), Salmon et al. 2011. */
INLINE void philox(uint64_t first, uint64_t key, uint32_t words[4][LOT]) {
    uint32_t low = (uint32_t)key, high = (uint32_t)(key >> 32);
#pragma omp simd
    for (int l = 0; l < LOT; l++) {
        uint64_t counter = first + l;
        words[0][l] = (uint32_t)counter, words[1][l] = (uint32_t)(counter >> 32);
        words[2][l] = words[3][l] = 0;
    }
    for (int round = 0; round < 10; round++) {
#pragma omp simd
        for (int l = 0; l < LOT; l++) {
            uint64_t left = (uint64_t)words[0][l] * 0xD2511F53u, right = (uint64_t)words[2][l] * 0xCD9E8D57u;
            words[0][l] = (uint32_t)(right >> 32) ^ words[1][l] ^ low;
            words[1][l] = (uint32_t)right;
            words[2][l] = (uint32_t)(left >> 32) ^ words[3][l] ^ high;
            words[3][l] = (uint32_t)left;
        }
        low += 0x9E3779B9u, high += 0xBB67AE85u;
    }
}

static void drop(const void *task, integer piece) {
    const Drop *p = task;
    uint32_t words[4][LOT];
    for (integer b = piece * BLOCKS; b < (piece + 1) * BLOCKS && 4 * b < p->n; b += LOT) {
        philox(b, p->key, words);
        integer many = smaller(4 * LOT, p->n - 4 * b);
        const real *x = p->x + 4 * b;
        real *y = p->y + 4 * b;
        for (integer i = 0; i < many; i++) y[i] = x[i] * (words[i % 4][i / 4] >= p->threshold ? p->scale : 0);
    }
}

/* Entry i is decided by word i mod 4 of block i div 4. */
EXPORT NAME(dropout)(const real *x, real *y, integer n, integer threshold, uint64_t key, real scale) {
    Drop p = {x, y, scale, n, threshold, key};
    share(drop, &p, blocks_of(4 * BLOCKS, n), 16 * n);
}
