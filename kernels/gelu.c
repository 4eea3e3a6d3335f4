/* y = x Phi(x), Phi(x) = erfc(-x / sqrt 2) / 2        see gelu.py */
#include "common.h"

enum { BLOCK = 4096 }; /* entries of a piece */

static const real ROOT_HALF = 0.70710678118654752440, ROOT_TAU = 2.50662827463100050242;

#ifdef REAL_IS_FLOAT
/* `exponential` ends above the subnormal numbers; this goes on: 16 on and off again. */
INLINE float far_exponential(float x) { return exponential(x + 16) * 1.12535175e-7f; }

/* erfc(z) for z >= 0: t e^(-z^2 + a polynomial in t), t = 1 / (1 + z / 2), within 1.2e-7 of itself.
   Press et al. 1992, "Numerical Recipes", section 6.2. No branch: a loop of it is vector code. */
INLINE float tail(float z) {
    float t = 1 / (1 + 0.5f * z), p = 0.17087277f;
    p = p * t - 0.82215223f;
    p = p * t + 1.48851587f;
    p = p * t - 1.13520398f;
    p = p * t + 0.27886807f;
    p = p * t - 0.18628806f;
    p = p * t + 0.09678418f;
    p = p * t + 0.37409196f;
    p = p * t + 1.00002368f;
    return t * far_exponential(p * t - 1.26551223f - z * z);
}

/* erf(z) for |z| < 1, within 2 ulp.      Moshier, Cephes, ndtrf.c */
INLINE float centre(float z) {
    float s = z * z, p = 7.853861353153693e-5f;
    p = p * s - 8.010193625184903e-4f;
    p = p * s + 5.188327685732524e-3f;
    p = p * s - 2.685381193529856e-2f;
    p = p * s + 1.128358514861418e-1f;
    p = p * s - 3.761262582423300e-1f;
    p = p * s + 1.128379165726710f;
    return z * p;
}

INLINE float normal_below(float x) {
    float z = fabsf(x) * ROOT_HALF, half = 0.5f * tail(z);
    float outside = x < 0 ? half : 1 - half; /* further in the polynomial's rounding is seen */
    return z < 1 ? 0.5f + 0.5f * centre(x * ROOT_HALF) : outside;
}
#else
#define far_exponential exp
INLINE double normal_below(double x) { return 0.5 * erfc(-ROOT_HALF * x); }
#endif

typedef struct {
    const real *g, *x;
    real *y;
    integer n;
} Entries;

static void forward(const void *task, integer b) {
    const Entries *p = task;
    const real *x = p->x;
    real *y = p->y;
    integer end = smaller((b + 1) * BLOCK, p->n);
#pragma omp simd
    for (integer i = b * BLOCK; i < end; i++) y[i] = x[i] * normal_below(x[i]);
}

EXPORT NAME(gelu_forward)(const real *x, real *y, integer n) {
    Entries p = {NULL, x, y, n};
    share(forward, &p, blocks_of(BLOCK, n), 32 * n);
}

/* dx = g (Phi(x) + x phi(x)),  phi(x) = e^(-x^2 / 2) / sqrt(2 pi) */
static void backward(const void *task, integer b) {
    const Entries *p = task;
    const real *g = p->g, *x = p->x;
    real *dx = p->y;
    integer end = smaller((b + 1) * BLOCK, p->n);
#pragma omp simd
    for (integer i = b * BLOCK; i < end; i++)
        dx[i] = g[i] * (normal_below(x[i]) + x[i] * (far_exponential((real)-0.5 * x[i] * x[i]) / ROOT_TAU));
}

EXPORT NAME(gelu_backward)(const real *g, const real *x, real *dx, integer n) {
    Entries p = {g, x, dx, n};
    share(backward, &p, blocks_of(BLOCK, n), 32 * n);
}
