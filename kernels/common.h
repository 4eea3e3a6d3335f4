/* What the kernels share. Every kernel is written for `real`, and compiled for float and double. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "pool.h"

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(function) JOIN(function, real) /* rms_norm_forward_float */
#define EXPORT __attribute__((visibility("default"))) void
#define INLINE static inline __attribute__((always_inline))

typedef int64_t integer;
typedef uint16_t bf16; /* the upper half of a float32 */

INLINE integer smaller(integer a, integer b) { return a < b ? a : b; }
INLINE integer larger(integer a, integer b) { return a > b ? a : b; }
INLINE integer blocks_of(integer size, integer n) { return (n + size - 1) / size; }

#ifdef REAL_IS_FLOAT
typedef uint32_t word __attribute__((may_alias)); /* a float's bits */

INLINE void widen(const bf16 *x, float *y, integer n) {
    word *bits = (word *)y;
#pragma omp simd
    for (integer i = 0; i < n; i++) bits[i] = (uint32_t)x[i] << 16;
}

/* To the nearest, ties to even; a NaN stays one. */
INLINE void narrow(const float *x, bf16 *y, integer n) {
    const word *from = (const word *)x;
#pragma omp simd
    for (integer i = 0; i < n; i++) {
        uint32_t bits = from[i], rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
        y[i] = (bits & 0x7FFFFFFF) > 0x7F800000 ? (bits >> 16) | 0x40 : rounded;
    }
}

/* e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln(2) / 2, and e^r by a polynomial (Cephes, expf).
   Within 1 ulp; no call and no branch, so a loop around it becomes vector code. The argument is
   held to [-87, 88]: below, the result would be subnormal, which is a hundred times slower. */
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float rounder = 12582912.0f; /* 1.5 2^23: adding it rounds to an integer */
    float shifted = x * 1.44269504088896341f + rounder;
    float n = shifted - rounder;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* ln 2 in two parts */
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    union { float value; int32_t bits; } whole = {shifted}, power;
    power.bits = (whole.bits - 0x4B400000 + 127) << 23;
    return p * power.value;
}
#define ROOT sqrtf
#define LOG logf
#define LOG1P log1pf
#define REAL_MAX 3.402823466e38f
#else
INLINE double exponential(double x) { return exp(x); }
#define ROOT sqrt
#define LOG log
#define LOG1P log1p
#define REAL_MAX 1.7976931348623157e308
#endif
