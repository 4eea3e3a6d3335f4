/* The pairs (x_i, x_(i + half)) turned by their angle, or back        see rope.py */
#include "rope.h"

typedef struct {
    const real *x, *cosine, *sine;
    const integer *xs, *ys;
    real *y, sign;
    integer b, h, t, half;
} Turn;

/* Every head of one token: one row of the tables serves them all. */
static void turn(const Turn *p, integer n) {
    integer half = p->half, batch = n / p->t, token = n % p->t;
    const real *c = p->cosine + token * half, *s = p->sine + token * half;
    for (integer head = 0; head < p->h; head++) {
        const real *x = p->x + batch * p->xs[0] + head * p->xs[1] + token * p->xs[2];
        real *y = p->y + batch * p->ys[0] + head * p->ys[1] + token * p->ys[2];
        turn_head(x, y, c, s, half, p->sign);
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
