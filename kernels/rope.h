/* Rotary positions of one head of one token        see rope.py, into_cache.py */
#pragma once
#include "common.h"

/* Eight numbers: the halves of a head are short (16, 24, 32), and whole registers would leave a rest. */
typedef real eight __attribute__((vector_size(8 * sizeof(real)), aligned(sizeof(real)), may_alias));

/* y = (first c - second sign s, second c + first sign s), the halves of x */
INLINE void turn_head(const real *x, real *y, const real *c, const real *s, integer half, real sign) {
    integer i = 0;
    for (; i + 8 <= half; i += 8) {
        eight first = *(const eight *)(x + i), second = *(const eight *)(x + half + i);
        eight cosine = *(const eight *)(c + i), sine = sign * *(const eight *)(s + i);
        *(eight *)(y + i) = first * cosine - second * sine;
        *(eight *)(y + half + i) = second * cosine + first * sine;
    }
    for (; i < half; i++) {
        real first = x[i], second = x[half + i], sine = sign * s[i];
        y[i] = first * c[i] - second * sine;
        y[half + i] = second * c[i] + first * sine;
    }
}
