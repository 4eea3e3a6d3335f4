/* The pairs (x_i, x_(i + half)) turned by their angle, or back        see rope.py */
#include "common.h"

typedef struct {
    const real *x, *cosine, *sine;
    const integer *xs, *ys;
    real *y, sign;
    integer b, h, t, half;
} Turn;

/* Eight numbers: the halves of a head are short (16, 24, 32), and whole registers would leave a rest. */
typedef real eight __attribute__((vector_size(8 * sizeof(real)), aligned(sizeof(real)), may_alias));

/* Every head of one token: one row of the tables serves them all. */
static void turn(const Turn *p, integer n) {
    integer half = p->half, batch = n / p->t, token = n % p->t;
    const real *c = p->cosine + token * half, *s = p->sine + token * half;
    for (integer head = 0; head < p->h; head++) {
        const real *x = p->x + batch * p->xs[0] + head * p->xs[1] + token * p->xs[2];
        real *y = p->y + batch * p->ys[0] + head * p->ys[1] + token * p->ys[2];
        integer i = 0;
        for (; i + 8 <= half; i += 8) {
            eight first = *(const eight *)(x + i), second = *(const eight *)(x + half + i);
            eight cosine = *(const eight *)(c + i), sine = p->sign * *(const eight *)(s + i);
            *(eight *)(y + i) = first * cosine - second * sine;
            *(eight *)(y + half + i) = second * cosine + first * sine;
        }
        for (; i < half; i++) {
            real first = x[i], second = x[half + i], sine = p->sign * s[i];
            y[i] = first * c[i] - second * sine;
            y[half + i] = second * c[i] + first * sine;
        }
    }
}

enum { TOKENS = 32 }; /* of a piece */

static void turn_tokens(const void *task, integer piece) {
    const Turn *p = task;
    for (integer n = piece * TOKENS; n < smaller((piece + 1) * TOKENS, p->b * p->t); n++) turn(p, n);
}

/* x and y: (b, h, t, 2 half) with strides (batch, head, row) in entries. cos and sin: (t, half).
   sign 1 turns, -1 turns back. */
EXPORT NAME(rope_turn)(const real *x, const integer *xs, const real *cosine, const real *sine,
                       real *y, const integer *ys, integer b, integer h, integer t, integer half,
                       real sign) {
    Turn p = {x, cosine, sine, xs, ys, y, sign, b, h, t, half};
    share(turn_tokens, &p, blocks_of(TOKENS, b * t), 4 * b * h * t * half);
}
