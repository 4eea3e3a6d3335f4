/* A token's queries turned, its keys turned and its values put into a cache   see into_cache.py */
#include "rope.h"

/* q, y: (b, h, 1, 2 half)  k, v: (b, g, 1, 2 half)  keys, values: (b, g, s, 2 half), each with its
   strides (batch, head, row). cosine, sine: a row of `half`, or one for each batch (rows = b). */
#define INTO_CACHE(name, number, turn) \
    EXPORT name(const number *q, const integer *qs, const number *k, const integer *ks, \
                const number *v, const integer *vs, const number *cosine, const number *sine, \
                integer rows, number *y, const integer *ys, number *keys, const integer *keys_step, \
                number *values, const integer *values_step, const integer *place, integer b, \
                integer h, integer g, integer half) { \
        for (integer batch = 0; batch < b; batch++) { \
            const number *c = cosine + (rows == 1 ? 0 : batch * half), *s = sine + (c - cosine); \
            for (integer i = 0; i < h; i++) \
                turn(q + batch * qs[0] + i * qs[1], y + batch * ys[0] + i * ys[1], c, s, half, 1); \
            for (integer i = 0; i < g; i++) { \
                number *key = keys + batch * keys_step[0] + i * keys_step[1] + *place * keys_step[2]; \
                number *value = values + batch * values_step[0] + i * values_step[1]; \
                turn(k + batch * ks[0] + i * ks[1], key, c, s, half, 1); \
                memcpy(value + *place * values_step[2], v + batch * vs[0] + i * vs[1], \
                       2 * half * sizeof(number)); \
            } \
        } \
    }

INTO_CACHE(NAME(into_cache), real, turn_head)

#ifdef REAL_IS_FLOAT

/* Eight pairs at a time, in float32, rounded once. */
INLINE void turn_half_head(const bf16 *x, bf16 *y, const bf16 *c, const bf16 *s, integer half, float sign) {
    float pairs[16], turned[16], cosine[8], sine[8];
    for (integer i = 0; i < half; i += 8) {
        integer n = smaller(8, half - i);
        widen(x + i, pairs, n), widen(x + half + i, pairs + n, n);
        widen(c + i, cosine, n), widen(s + i, sine, n);
        turn_head(pairs, turned, cosine, sine, n, sign);
        narrow(turned, y + i, n), narrow(turned + n, y + half + i, n);
    }
}

INTO_CACHE(into_cache_of_halves_float, bf16, turn_half_head)

#endif
