/* O = softmax(scale Q K^T) V in strips of queries, grouped heads        see attention.py

   Q (b, h, t, d), K and V (b, hk, s, d) with any strides but the last; query head i reads key
   head i / (h / hk). Query row i sits at position s - t + i; if causal it sees keys up to there,
   and with a mask (b, h, t, s bytes, rows of stride 1) only those where it is not 0.
   A strip of STRIP queries against all keys it sees is the largest thing ever held. */
#include "tile.h"

enum { STRIP = 32 };

/* An array and its strides in entries: batch, head, row. */
typedef struct {
    real *x;
    const integer *stride;
} Array;

typedef struct {
    Array q, k, v, o, g, dq, dk, dv;
    const unsigned char *mask;
    const integer *mask_stride;
    real *log_sum;
    integer b, h, hk, t, s, d, causal, halves;
    real scale;
} Heads;

INLINE real *head_of(Array a, integer b, integer h) {
    return a.x + b * a.stride[0] + h * a.stride[1];
}

/* The keys that a row, or a strip of rows, may see are among those from `first` to `end`. */
typedef struct {
    integer first, end;
} Span;

INLINE Span seen_by(const Heads *p, const unsigned char *mask, integer row) {
    Span seen = {0, p->causal ? p->s - p->t + row + 1 : p->s};
    if (!mask) return seen;
    mask += row * p->mask_stride[2];
    while (seen.end >= 8 && !memcmp(mask + seen.end - 8, "\0\0\0\0\0\0\0", 8)) seen.end -= 8;
    while (seen.end > 0 && !mask[seen.end - 1]) seen.end--;
    while (seen.first < seen.end && !mask[seen.first]) seen.first++;
    return seen;
}

/* `first` is rounded down to whole vectors. A strip that sees nothing gets one key, masked. */
INLINE Span seen_by_strip(const Heads *p, const unsigned char *mask, integer row, integer tall) {
    Span seen = {p->s, 1};
    for (integer r = row; r < row + tall; r++) {
        Span own = seen_by(p, mask, r);
        if (own.end <= own.first) continue;
        seen.first = smaller(seen.first, own.first), seen.end = larger(seen.end, own.end);
    }
    seen.first = smaller(seen.first, seen.end - 1) / LANES * LANES;
    return seen;
}

/* Where a row of the strip must stop; not before the strip's first key. */
INLINE integer end_of_row(const Heads *p, Span seen, integer row) {
    return p->causal ? larger(seen.first, smaller(seen.end, p->s - p->t + row + 1)) : seen.end;
}

/* Rows of x to rows of `wide` entries, zeros behind. */
INLINE void copy_rows(const real *x, integer stride, real *to, integer rows, integer d, integer wide) {
    for (integer i = 0; i < rows; i++) {
        memcpy(to + i * wide, x + i * stride, d * sizeof(real));
        memset(to + i * wide + d, 0, (wide - d) * sizeof(real));
    }
}

/* x (rows, d) to its transpose (d, wide), zeros behind. */
static void transpose(const real *x, integer stride, real *to, integer rows, integer d, integer wide) {
    integer whole_rows = rows / LANES * LANES, whole = d / LANES * LANES;
    for (integer i = 0; i < whole_rows; i += LANES)
        for (integer j = 0; j < whole; j += LANES)
            transpose_square(x + i * stride + j, stride, to + j * wide + i, wide);
    for (integer j = 0; j < d; j++) {
        for (integer i = j < whole ? whole_rows : 0; i < rows; i++) to[j * wide + i] = x[i * stride + j];
        memset(to + j * wide + rows, 0, (wide - rows) * sizeof(real));
    }
}

/* In place, scores to e^(scale score - m) with m the row's greatest, and to 0 where the mask is;
   their sum and m come back. A row that sees nothing has sum 0. */
INLINE real soften(real *score, const unsigned char *mask, integer n, real scale, real *m) {
    real top = -REAL_MAX, sum = 0;
    if (mask)
#pragma omp simd
        for (integer j = 0; j < n; j++) score[j] = mask[j] ? score[j] : -REAL_MAX;
#pragma omp simd reduction(max : top)
    for (integer j = 0; j < n; j++) top = score[j] > top ? score[j] : top;
    *m = top * scale;
    if (top == -REAL_MAX) {
        memset(score, 0, n * sizeof(real));
        return *m = 0;
    }
    if (mask)
#pragma omp simd reduction(+ : sum)
        for (integer j = 0; j < n; j++)
            sum += score[j] = mask[j] ? exponential((score[j] - top) * scale) : 0;
    else
#pragma omp simd reduction(+ : sum)
        for (integer j = 0; j < n; j++) sum += score[j] = exponential((score[j] - top) * scale);
    return sum;
}

/* The next `n` numbers of a thread's scratch memory, a whole number of vectors. */
INLINE real *take(real **memory, integer n) {
    real *taken = *memory;
    *memory += (n + 15) / 16 * 16;
    return taken;
}

INLINE const unsigned char *mask_of(const Heads *p, integer b, integer h) {
    return p->mask ? p->mask + b * p->mask_stride[0] + h * p->mask_stride[1] : NULL;
}

/* All query heads that read key head n. */
static void forward(const void *task, integer n) {
    const Heads *p = task;
    integer t = p->t, s = p->s, d = p->d, wide = padded(d), keys = padded(s), group = p->h / p->hk;
    integer kb = n / p->hk, kh = n % p->hk, qs = p->q.stride[2], os = p->o.stride[2];
    real *memory = scratch(OWN, (d * keys + s * wide + STRIP * (keys + wide) + 64) * sizeof(real));
    real *kt = take(&memory, d * keys), *rows = take(&memory, s * wide);
    real *score = take(&memory, STRIP * keys), *out = take(&memory, STRIP * wide);
    transpose(head_of(p->k, kb, kh), p->k.stride[2], kt, s, d, keys);
    copy_rows(head_of(p->v, kb, kh), p->v.stride[2], rows, s, d, wide);
    for (integer head = kh * group; head < (kh + 1) * group; head++) {
        const unsigned char *mask = mask_of(p, kb, head);
        for (integer i = 0; i < t; i += STRIP) {
            integer tall = smaller(STRIP, t - i);
            Span seen = seen_by_strip(p, mask, i, tall);
            integer first = seen.first, many = seen.end - first;
            const real *strip = head_of(p->q, kb, head) + i * qs;
            real *result = head_of(p->o, kb, head) + i * os, sum[STRIP];
            multiply(tall, padded(many), d, strip, qs, 1, kt + first, keys, score, keys, 0);
            for (integer r = 0; r < tall; r++) {
                real *row = score + r * keys, m;
                integer end = end_of_row(p, seen, i + r);
                const unsigned char *allowed = mask ? mask + (i + r) * p->mask_stride[2] + first : NULL;
                sum[r] = soften(row, allowed, end - first, p->scale, &m);
                sum[r] = sum[r] == 0 ? 1 : sum[r];
                p->log_sum[(kb * p->h + head) * t + i + r] = m + LOG(sum[r]);
                memset(row + end - first, 0, (seen.end - end) * sizeof(real));
            }
            multiply(tall, wide, many, score, keys, 1, rows + first * wide, wide, out, wide, 0);
            for (integer r = 0; r < tall; r++)
#pragma omp simd
                for (integer j = 0; j < d; j++) result[r * os + j] = out[r * wide + j] / sum[r];
        }
    }
}

/* score[j] = q . k_j: where there is one query a head, to transpose the keys does not pay. */
INLINE void dot_products(const real *q, const real *k, integer stride, real *score, integer n, integer d) {
    integer whole = d / LANES * LANES;
    for (integer j = 0; j < n; j++, k += stride) {
        vector sums = {0};
        for (integer i = 0; i < whole; i += LANES) sums += *(const vector *)(q + i) * *(const vector *)(k + i);
        real sum = sum_of(sums);
        for (integer i = whole; i < d; i++) sum += q[i] * k[i];
        score[j] = sum;
    }
}

/* `rows` rows of keys or values from row `first` on: as they lie, if those are numbers of whole
   vectors, or copied to `own`, rows of `wide`. */
INLINE const real *read_rows(const Heads *p, Array a, integer b, integer h, integer first, integer rows,
                             integer wide, real *own, integer *stride) {
    integer at = b * a.stride[0] + h * a.stride[1] + first * a.stride[2];
    *stride = wide;
#ifdef REAL_IS_FLOAT
    if (p->halves) {
        memset(own, 0, p->d == wide ? 0 : rows * wide * sizeof(real));
        for (integer i = 0; i < rows; i++)
            widen((const bf16 *)a.x + at + i * a.stride[2], own + i * wide, p->d);
        return own;
    }
#endif
    if (p->d == wide) {
        *stride = a.stride[2];
        return a.x + at;
    }
    copy_rows(a.x + at, a.stride[2], own, rows, p->d, wide);
    return own;
}

/* As `forward`, for one query a head: those that read key head n are the rows of a product. */
static void forward_of_one(const void *task, integer n) {
    const Heads *p = task;
    integer s = p->s, d = p->d, wide = padded(d), keys = padded(s), group = p->h / p->hk;
    integer kb = n / p->hk, kh = n % p->hk, step;
    real *memory = scratch(OWN, (group * (keys + wide + 1) + s * wide + 64) * sizeof(real));
    real *score = take(&memory, group * keys), *out = take(&memory, group * wide);
    real *sum = take(&memory, group), *own = take(&memory, s * wide);
    Span all = {s, 1};
    for (integer r = 0; r < group; r++) {
        Span seen = seen_by(p, mask_of(p, kb, kh * group + r), 0);
        all.first = smaller(all.first, seen.first), all.end = larger(all.end, seen.end);
    }
    integer first = smaller(all.first, all.end - 1), many = all.end - first;
    const real *k = read_rows(p, p->k, kb, kh, first, many, wide, own, &step);
    for (integer r = 0; r < group; r++) {
        integer head = kh * group + r;
        const unsigned char *mask = mask_of(p, kb, head);
        real *row = score + r * keys, m;
        dot_products(head_of(p->q, kb, head), k, step, row, many, d);
        sum[r] = soften(row, mask ? mask + first : NULL, many, p->scale, &m);
        sum[r] = sum[r] == 0 ? 1 : sum[r];
        p->log_sum[kb * p->h + head] = m + LOG(sum[r]);
    }
    const real *v = read_rows(p, p->v, kb, kh, first, many, wide, own, &step);
    multiply(group, wide, many, score, keys, 1, v, step, out, wide, 0);
    for (integer r = 0; r < group; r++) {
        real *result = head_of(p->o, kb, kh * group + r);
#pragma omp simd
        for (integer j = 0; j < d; j++) result[j] = out[r * wide + j] / sum[r];
    }
}

/* Also log_sum (b, h, t), m + log sum: all that the backward pass needs to make a strip again.
   halves: k and v are bfloat16; only with t = 1. */
EXPORT NAME(attention_forward)(const real *q, const integer *qs, const real *k, const integer *ks,
                               const real *v, const integer *vs, real *o, const integer *os,
                               const unsigned char *mask, const integer *ms, real *log_sum, integer b,
                               integer h, integer hk, integer t, integer s, integer d, integer causal,
                               real scale, integer halves) {
    Heads p = {.q = {(real *)q, qs}, .k = {(real *)k, ks}, .v = {(real *)v, vs}, .o = {o, os},
               .mask = mask, .mask_stride = ms, .log_sum = log_sum,
               .b = b, .h = h, .hk = hk, .t = t, .s = s, .d = d, .causal = causal, .scale = scale,
               .halves = halves};
    share(t == 1 ? forward_of_one : forward, &p, b * hk, 4 * b * h * t * s * d);
}

/* weight: scores to P, slope: G V^T to dS; both 0 where the row does not look. */
INLINE void slopes_of_row(real *weight, real *slope, const unsigned char *mask, integer n,
                          real scale, real log_sum, real dot) {
#pragma omp simd
    for (integer j = 0; j < n; j++) {
        weight[j] = exponential(weight[j] * scale - log_sum);
        slope[j] = scale * weight[j] * (slope[j] - dot);
    }
    if (mask)
#pragma omp simd
        for (integer j = 0; j < n; j++) {
            weight[j] = mask[j] ? weight[j] : 0;
            slope[j] = mask[j] ? slope[j] : 0;
        }
}

static void backward(const void *task, integer n) {
    const Heads *p = task;
    integer t = p->t, s = p->s, d = p->d, wide = padded(d), keys = padded(s), group = p->h / p->hk;
    integer kb = n / p->hk, kh = n % p->hk, os = p->o.stride[2], dqs = p->dq.stride[2];
    integer room = 2 * d * keys + 3 * s * wide + STRIP * (2 * keys + 3 * wide) + 160;
    real *memory = scratch(OWN, room * sizeof(real));
    real *kt = take(&memory, d * keys), *vt = take(&memory, d * keys), *rows = take(&memory, s * wide);
    real *sum_k = take(&memory, s * wide), *sum_v = take(&memory, s * wide);
    real *weight = take(&memory, STRIP * keys), *slope = take(&memory, STRIP * keys);
    real *qi = take(&memory, STRIP * wide), *gi = take(&memory, STRIP * wide);
    real *out = take(&memory, STRIP * wide);
    transpose(head_of(p->k, kb, kh), p->k.stride[2], kt, s, d, keys);
    transpose(head_of(p->v, kb, kh), p->v.stride[2], vt, s, d, keys);
    copy_rows(head_of(p->k, kb, kh), p->k.stride[2], rows, s, d, wide);
    memset(sum_k, 0, s * wide * sizeof(real));
    memset(sum_v, 0, s * wide * sizeof(real));
    for (integer head = kh * group; head < (kh + 1) * group; head++) {
        const unsigned char *mask = mask_of(p, kb, head);
        for (integer i = 0; i < t; i += STRIP) {
            integer tall = smaller(STRIP, t - i);
            Span seen = seen_by_strip(p, mask, i, tall);
            integer first = seen.first, many = seen.end - first;
            const real *oi = head_of(p->o, kb, head) + i * os;
            real *result = head_of(p->dq, kb, head) + i * dqs;
            copy_rows(head_of(p->q, kb, head) + i * p->q.stride[2], p->q.stride[2], qi, tall, d, wide);
            copy_rows(head_of(p->g, kb, head) + i * p->g.stride[2], p->g.stride[2], gi, tall, d, wide);
            multiply(tall, padded(many), d, qi, wide, 1, kt + first, keys, weight, keys, 0);
            multiply(tall, padded(many), d, gi, wide, 1, vt + first, keys, slope, keys, 0);
            for (integer r = 0; r < tall; r++) {
                real *wr = weight + r * keys, *sr = slope + r * keys, dot = 0;
                integer end = end_of_row(p, seen, i + r);
                const unsigned char *allowed = mask ? mask + (i + r) * p->mask_stride[2] + first : NULL;
#pragma omp simd reduction(+ : dot)
                for (integer j = 0; j < d; j++) dot += gi[r * wide + j] * oi[r * os + j];
                slopes_of_row(wr, sr, allowed, end - first, p->scale,
                              p->log_sum[(kb * p->h + head) * t + i + r], dot);
                memset(wr + end - first, 0, (seen.end - end) * sizeof(real));
                memset(sr + end - first, 0, (seen.end - end) * sizeof(real));
            }
            multiply(tall, wide, many, slope, keys, 1, rows + first * wide, wide, out, wide, 0);
            multiply(many, wide, tall, weight, 1, keys, gi, wide, sum_v + first * wide, wide, 1);
            multiply(many, wide, tall, slope, 1, keys, qi, wide, sum_k + first * wide, wide, 1);
            for (integer r = 0; r < tall; r++)
                memcpy(result + r * dqs, out + r * wide, d * sizeof(real));
        }
    }
    real *dk = head_of(p->dk, kb, kh), *dv = head_of(p->dv, kb, kh);
    for (integer j = 0; j < s; j++) {
        memcpy(dk + j * p->dk.stride[2], sum_k + j * wide, d * sizeof(real));
        memcpy(dv + j * p->dv.stride[2], sum_v + j * wide, d * sizeof(real));
    }
}

/* P = e^(scale Q K^T - log_sum)    dV = P^T G    dP = G V^T    dS = scale P (dP - rowsum(G O))
   dQ = dS K    dK = dS^T Q;   dK and dV are summed over the query heads of a group, in order. */
EXPORT NAME(attention_backward)(const real *g, const integer *gs, const real *q, const integer *qs,
                                const real *k, const integer *ks, const real *v, const integer *vs,
                                const real *o, const integer *os, const unsigned char *mask,
                                const integer *ms, const real *log_sum, real *dq, const integer *dqs,
                                real *dk, const integer *dks, real *dv, const integer *dvs, integer b,
                                integer h, integer hk, integer t, integer s, integer d, integer causal,
                                real scale) {
    Heads p = {.g = {(real *)g, gs}, .q = {(real *)q, qs}, .k = {(real *)k, ks}, .v = {(real *)v, vs},
               .o = {(real *)o, os}, .dq = {dq, dqs}, .dk = {dk, dks}, .dv = {dv, dvs},
               .mask = mask, .mask_stride = ms, .log_sum = (real *)log_sum,
               .b = b, .h = h, .hk = hk, .t = t, .s = s, .d = d, .causal = causal, .scale = scale};
    share(backward, &p, b * hk, 10 * b * h * t * s * d);
}
