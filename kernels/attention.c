/* O = softmax(scale Q K^T) V in strips of queries, grouped heads        see attention.py

   Q (b, h, t, d), K and V (b, hk, s, d) with any strides but the last; query head i reads key
   head i / (h / hk). Query row i sits at position s - t + i; if causal it sees keys up to there.
   A strip of STRIP queries against all keys it sees is the largest thing ever held. */
#include "tile.h"

enum { STRIP = 32 };

typedef struct {
    integer b, h, hk, t, s, d, causal;
    real scale;
} Shape;

/* Strides of one array, in entries: batch, head, row. */
INLINE integer at(const integer *stride, integer b, integer h) {
    return b * stride[0] + h * stride[1];
}

INLINE integer visible(const Shape *p, integer last_row) {
    return p->causal ? p->s - p->t + last_row + 1 : p->s;
}

/* Rows of x to rows of `wide` entries, zeros behind. */
INLINE void copy_rows(const real *x, integer stride, real *to, integer rows, integer d, integer wide) {
    for (integer i = 0; i < rows; i++) {
        memcpy(to + i * wide, x + i * stride, d * sizeof(real));
        memset(to + i * wide + d, 0, (wide - d) * sizeof(real));
    }
}

/* x (rows, d) to its transpose (d, wide), zeros behind; 16 rows at a time, to stay in cache. */
INLINE void transpose(const real *x, integer stride, real *to, integer rows, integer d, integer wide) {
    for (integer i = 0; i < rows; i += 16)
        for (integer j = 0; j < d; j++)
            for (integer r = i; r < smaller(i + 16, rows); r++) to[j * wide + r] = x[r * stride + j];
    for (integer j = 0; j < d; j++) memset(to + j * wide + rows, 0, (wide - rows) * sizeof(real));
}

/* In place, scores to e^(scale score - m) with m the row's greatest; their sum and m come back. */
INLINE real soften(real *score, integer n, real scale, real *m) {
    real top = score[0], sum = 0;
#pragma omp simd reduction(max : top)
    for (integer j = 0; j < n; j++) top = score[j] > top ? score[j] : top;
    *m = top * scale;
#pragma omp simd reduction(+ : sum)
    for (integer j = 0; j < n; j++) sum += score[j] = exponential((score[j] - top) * scale);
    return sum;
}

/* Also log_sum (b, h, t), m + log sum: all that the backward pass needs to make a strip again. */
EXPORT NAME(attention_forward)(const real *q, const integer *qs, const real *k, const integer *ks,
                               const real *v, const integer *vs, real *o, const integer *os,
                               real *log_sum, integer b, integer h, integer hk, integer t, integer s,
                               integer d, integer causal, real scale) {
    Shape p = {b, h, hk, t, s, d, causal, scale};
    integer wide = padded(d), keys = padded(s), group = h / hk;
#pragma omp parallel num_threads(team(b *h *t *s))
    {
        real *kt = malloc(d * keys * sizeof(real)), *rows = malloc(s * wide * sizeof(real));
        real *score = malloc(STRIP * keys * sizeof(real)), *out = malloc(STRIP * wide * sizeof(real));
#pragma omp for schedule(dynamic, 1)
        for (integer n = 0; n < b * hk; n++) {
            transpose(k + at(ks, n / hk, n % hk), ks[2], kt, s, d, keys);
            copy_rows(v + at(vs, n / hk, n % hk), vs[2], rows, s, d, wide);
            for (integer head = n % hk * group; head < (n % hk + 1) * group; head++)
                for (integer i = 0; i < t; i += STRIP) {
                    integer tall = smaller(STRIP, t - i), seen = visible(&p, i + tall - 1);
                    const real *strip = q + at(qs, n / hk, head) + i * qs[2];
                    real *result = o + at(os, n / hk, head) + i * os[2], sum[STRIP];
                    multiply(tall, padded(seen), d, strip, qs[2], 1, kt, keys, score, keys, 0);
                    for (integer r = 0; r < tall; r++) {
                        real *row = score + r * keys, m;
                        integer length = visible(&p, i + r);
                        sum[r] = soften(row, length, scale, &m);
                        log_sum[(n / hk * h + head) * t + i + r] = m + LOG(sum[r]);
                        memset(row + length, 0, (seen - length) * sizeof(real));
                    }
                    multiply(tall, wide, seen, score, keys, 1, rows, wide, out, wide, 0);
                    for (integer r = 0; r < tall; r++)
#pragma omp simd
                        for (integer j = 0; j < d; j++) result[r * os[2] + j] = out[r * wide + j] / sum[r];
                }
        }
        free(kt), free(rows), free(score), free(out);
    }
}

/* P = e^(scale Q K^T - log_sum)    dV = P^T G    dP = G V^T    dS = scale P (dP - rowsum(G O))
   dQ = dS K    dK = dS^T Q;   dK and dV are summed over the query heads of a group, in order. */
EXPORT NAME(attention_backward)(const real *g, const integer *gs, const real *q, const integer *qs,
                                const real *k, const integer *ks, const real *v, const integer *vs,
                                const real *o, const integer *os, const real *log_sum, real *dq,
                                const integer *dqs, real *dk, const integer *dks, real *dv,
                                const integer *dvs, integer b, integer h, integer hk, integer t,
                                integer s, integer d, integer causal, real scale) {
    Shape p = {b, h, hk, t, s, d, causal, scale};
    integer wide = padded(d), keys = padded(s), group = h / hk;
#pragma omp parallel num_threads(team(b *h *t *s))
    {
        real *kt = malloc(d * keys * sizeof(real)), *vt = malloc(d * keys * sizeof(real));
        real *rows = malloc(s * wide * sizeof(real));
        real *sum_k = malloc(s * wide * sizeof(real)), *sum_v = malloc(s * wide * sizeof(real));
        real *weight = malloc(STRIP * keys * sizeof(real)), *slope = malloc(STRIP * keys * sizeof(real));
        real *qi = malloc(STRIP * wide * sizeof(real)), *gi = malloc(STRIP * wide * sizeof(real));
        real *out = malloc(STRIP * wide * sizeof(real));
#pragma omp for schedule(dynamic, 1)
        for (integer n = 0; n < b * hk; n++) {
            integer kb = n / hk, kh = n % hk;
            transpose(k + at(ks, kb, kh), ks[2], kt, s, d, keys);
            transpose(v + at(vs, kb, kh), vs[2], vt, s, d, keys);
            copy_rows(k + at(ks, kb, kh), ks[2], rows, s, d, wide);
            memset(sum_k, 0, s * wide * sizeof(real));
            memset(sum_v, 0, s * wide * sizeof(real));
            for (integer head = kh * group; head < (kh + 1) * group; head++)
                for (integer i = 0; i < t; i += STRIP) {
                    integer tall = smaller(STRIP, t - i), seen = visible(&p, i + tall - 1);
                    const real *oi = o + at(os, kb, head) + i * os[2];
                    real *result = dq + at(dqs, kb, head) + i * dqs[2];
                    copy_rows(q + at(qs, kb, head) + i * qs[2], qs[2], qi, tall, d, wide);
                    copy_rows(g + at(gs, kb, head) + i * gs[2], gs[2], gi, tall, d, wide);
                    multiply(tall, padded(seen), d, qi, wide, 1, kt, keys, weight, keys, 0);
                    multiply(tall, padded(seen), d, gi, wide, 1, vt, keys, slope, keys, 0);
                    for (integer r = 0; r < tall; r++) {
                        real *wr = weight + r * keys, *sr = slope + r * keys, dot = 0;
                        real base = log_sum[(kb * h + head) * t + i + r];
                        integer length = visible(&p, i + r);
#pragma omp simd reduction(+ : dot)
                        for (integer j = 0; j < d; j++) dot += gi[r * wide + j] * oi[r * os[2] + j];
#pragma omp simd
                        for (integer j = 0; j < length; j++) {
                            wr[j] = exponential(wr[j] * scale - base);
                            sr[j] = scale * wr[j] * (sr[j] - dot);
                        }
                        memset(wr + length, 0, (seen - length) * sizeof(real));
                        memset(sr + length, 0, (seen - length) * sizeof(real));
                    }
                    multiply(tall, wide, seen, slope, keys, 1, rows, wide, out, wide, 0);
                    multiply(seen, wide, tall, weight, 1, keys, gi, wide, sum_v, wide, 1);
                    multiply(seen, wide, tall, slope, 1, keys, qi, wide, sum_k, wide, 1);
                    for (integer r = 0; r < tall; r++)
                        memcpy(result + r * dqs[2], out + r * wide, d * sizeof(real));
                }
            for (integer j = 0; j < s; j++) {
                memcpy(dk + at(dks, kb, kh) + j * dks[2], sum_k + j * wide, d * sizeof(real));
                memcpy(dv + at(dvs, kb, kh) + j * dvs[2], sum_v + j * wide, d * sizeof(real));
            }
        }
        free(kt), free(vt), free(rows), free(sum_k), free(sum_v);
        free(weight), free(slope), free(qi), free(gi), free(out);
    }
}
