/* The logistic loss, its gradient, and its Hessian, whole or times a vector        see logistic.py

   As many rows of X at a time as a register has numbers: they are read once, into the first-level
   cache, as doubles, behind them the intercept's 1 and zeros that fill the last register. Their
   logits are then one register for each output, and so are their exponentials and factors. */
#include "tile.h"

#ifdef REAL_IS_DOUBLE

typedef struct {
    const void *x;
    integer single, down, across; /* whether x is float; entries to the next row, next column */
    const double *y;              /* of one output: 0 ... 1 */
    const integer *code;          /* of more: 0 ... k - 1 */
    const double *weight, *theta, *along;
    double *sums; /* of one piece behind those of another */
    integer n, d, columns, k, wide; /* rows, columns of X, with the intercept's, outputs, padded columns */
    integer rows;                   /* in a piece */
} Logits;

/* e^-z of z >= 0 = 2^n e^r, n = round(-z / ln 2), |r| <= ln(2) / 2: 14 terms leave 2^-58. Held to
   z = 708: below e^-708 the result would be subnormal. */
INLINE double decay(double z) {
    z = z < 708 ? z : 708;
    const double rounder = 0x1.8p52; /* adding it rounds to an integer */
    double shifted = rounder - z * 1.4426950408889634074;
    double n = shifted - rounder;
    double r = (-z - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10; /* ln 2 in two parts */
    double p = 1;
#pragma GCC unroll 13
    for (int i = 13; i > 0; i--) p = p * (r * (1.0 / i)) + 1;
    union { double value; uint64_t bits; } whole = {shifted}, power;
    power.bits = (whole.bits + 1023) << 52;
    return p * power.value;
}

/* log(1 + e) of 0 <= e <= 1 = 2 artanh(s), s = e / (2 + e) <= 1/3: 17 terms leave 2^-56. */
INLINE double log_of_one_and(double e) {
    double s = e / (2 + e), p = 0;
#pragma GCC unroll 17
    for (int i = 33; i > 0; i -= 2) p = p * (s * s) + 1.0 / i;
    return 2 * s * p;
}

/* ---------------------------------------------------------------------------- LANES rows at a time */

INLINE void copy_rows(const int single, integer across, const Logits *p, integer first, integer many,
                      double *to) {
    for (integer i = 0; i < many; i++) {
        integer row = (first + i) * p->down;
#pragma omp simd
        for (integer f = 0; f < p->d; f++)
            to[i * p->wide + f] = single ? ((const float *)p->x)[row + f * across]
                                         : ((const double *)p->x)[row + f * across];
    }
}

INLINE void read_rows(const Logits *p, integer first, integer many, double *to) {
    if (p->across != 1) copy_rows(p->single, p->across, p, first, many, to);
    else if (p->single) copy_rows(1, 1, p, first, many, to);
    else copy_rows(0, 1, p, first, many, to);
    for (integer i = many; i < LANES; i++) memset(to + i * p->wide, 0, p->d * sizeof(double)); /* no NaN */
}

/* What follows the last column of X is the same in all rows. */
static void pad_rows(const Logits *p, double *x, integer rows) {
    for (integer i = 0; i < rows; i++)
        for (integer f = p->d; f < p->wide; f++) x[i * p->wide + f] = f < p->columns;
}

/* A row that is not there is 0 and weighs nothing. */
INLINE void read_weights(const Logits *p, integer first, integer many, double *weight) {
    for (int i = 0; i < LANES; i++) weight[i] = i < many ? p->weight[first + i] : 0;
}

/* theta x: (k, LANES) */
INLINE void logits(const Logits *p, const double *theta, const double *x, double *z) {
    for (integer a = 0; a < p->k; a++, theta += p->wide) {
        vector sum[LANES], column[LANES], all = {0};
#pragma GCC unroll 8
        for (int i = 0; i < LANES; i++) sum[i] = (vector){0};
        for (integer f = 0; f < p->wide; f += LANES)
#pragma GCC unroll 8
            for (int i = 0; i < LANES; i++)
                sum[i] += *(const vector *)(x + i * p->wide + f) * *(const vector *)(theta + f);
        transpose_square((const double *)sum, LANES, (double *)column, LANES);
#pragma GCC unroll 8
        for (int i = 0; i < LANES; i++) all += column[i];
        *(vector *)(z + a * LANES) = all;
    }
}

/* sums[a] += sum of factor[a][i] x_i */
INLINE void add_rows(const Logits *p, const double *x, const double *factor, double *sums) {
    for (integer a = 0; a < p->k; a++, factor += LANES, sums += p->wide)
        for (integer f = 0; f < p->wide; f += LANES) {
            vector sum = *(vector *)(sums + f);
#pragma GCC unroll 8
            for (int i = 0; i < LANES; i++) sum += factor[i] * *(const vector *)(x + i * p->wide + f);
            *(vector *)(sums + f) = sum;
        }
}

/* z becomes e^(z - most) / total, the probabilities of the k outputs. */
INLINE void softmax(integer k, double *z, double *most, double *total) {
    memcpy(most, z, LANES * sizeof(double));
    memset(total, 0, LANES * sizeof(double));
    for (integer a = 1; a < k; a++)
#pragma omp simd
        for (int i = 0; i < LANES; i++) most[i] = z[a * LANES + i] > most[i] ? z[a * LANES + i] : most[i];
    for (integer a = 0; a < k; a++)
#pragma omp simd
        for (int i = 0; i < LANES; i++) {
            z[a * LANES + i] = decay(most[i] - z[a * LANES + i]);
            total[i] += z[a * LANES + i];
        }
    for (integer a = 0; a < k; a++)
#pragma omp simd
        for (int i = 0; i < LANES; i++) z[a * LANES + i] /= total[i];
}

/* w p (1 - p) of a logit */
INLINE double curvature(double z, double weight) {
    double e = decay(fabs(z));
    return weight * e / ((1 + e) * (1 + e));
}

/* z becomes w loss'; what comes back is the sum of w loss. */
INLINE double residuals(const Logits *p, integer row, integer many, const double *weight, double *z) {
    double loss = 0, truth[LANES], most[LANES], total[LANES];
    if (p->k == 1) {
        for (int i = 0; i < LANES; i++) truth[i] = i < many ? p->y[row + i] : 0;
#pragma omp simd reduction(+ : loss)
        for (int i = 0; i < LANES; i++) {
            double e = decay(fabs(z[i]));
            loss += weight[i] * ((z[i] > 0 ? z[i] : 0) - truth[i] * z[i] + log_of_one_and(e));
            z[i] = weight[i] * ((z[i] >= 0 ? 1 : e) / (1 + e) - truth[i]);
        }
        return loss;
    }
    for (int i = 0; i < many; i++) truth[i] = z[p->code[row + i] * LANES + i];
    softmax(p->k, z, most, total);
    for (integer a = 0; a < p->k; a++)
#pragma omp simd
        for (int i = 0; i < LANES; i++) z[a * LANES + i] *= weight[i];
    for (int i = 0; i < many; i++) {
        loss += weight[i] * (most[i] + log(total[i]) - truth[i]);
        z[p->code[row + i] * LANES + i] -= weight[i];
    }
    return loss;
}

/* z becomes w loss'' times a change of the logits. */
INLINE void bends(const Logits *p, const double *weight, const double *change, double *z) {
    double mean[LANES] = {0}, most[LANES], total[LANES];
    if (p->k == 1) {
#pragma omp simd
        for (int i = 0; i < LANES; i++) z[i] = curvature(z[i], weight[i]) * change[i];
        return;
    }
    softmax(p->k, z, most, total);
    for (integer a = 0; a < p->k * LANES; a += LANES)
        for (int i = 0; i < LANES; i++) mean[i] += z[a + i] * change[a + i];
    for (integer a = 0; a < p->k * LANES; a += LANES)
#pragma omp simd
        for (int i = 0; i < LANES; i++) z[a + i] *= weight[i] * (change[a + i] - mean[i]);
}

/* -------------------------------------------------------------------------------------- pieces of X */

/* Sums of w loss' x, and behind them that of w loss; or, along a change of theta, of w loss'' (x along) x. */
static void sum_piece(const void *task, integer piece) {
    const Logits *p = task;
    integer first = piece * p->rows, last = smaller(first + p->rows, p->n), size = p->k * p->wide + 1;
    double *x = scratch(OWN, LANES * (p->wide + 2 * p->k) * sizeof(double)), *z = x + LANES * p->wide;
    double *change = z + p->k * LANES, *sums = p->sums + piece * size, weight[LANES];
    pad_rows(p, x, LANES);
    memset(sums, 0, size * sizeof(double));
    for (integer row = first; row < last; row += LANES) {
        integer many = smaller(LANES, last - row);
        read_rows(p, row, many, x);
        read_weights(p, row, many, weight);
        logits(p, p->theta, x, z);
        if (p->along) {
            logits(p, p->along, x, change);
            bends(p, weight, change, z);
        } else
            sums[size - 1] += residuals(p, row, many, weight, z);
        add_rows(p, x, z, sums);
    }
}

enum { BLOCK = 64 }; /* rows that are multiplied together */

/* w d2 loss / d z_a d z_b, from the logit of one output or the probabilities of more */
INLINE void curvatures(const Logits *p, integer a, integer b, const double *weight, const double *z, double *to) {
#pragma omp simd
    for (int i = 0; i < LANES; i++)
        to[i] = p->k == 1 ? curvature(z[i], weight[i])
                          : weight[i] * z[a * LANES + i] * ((a == b) - z[b * LANES + i]);
}

/* For each pair of outputs a <= b the upper triangle of sum_i loss''_ab x_i x_i^T, by strips: a few
   entries below it are made too. */
static void hessian_of_piece(const void *task, integer piece) {
    const Logits *p = task;
    integer first = piece * p->rows, last = smaller(first + p->rows, p->n), wide = p->wide, k = p->k;
    double *x = scratch(OWN, BLOCK * (2 * wide + k + 1) * sizeof(double)), *bent = x + BLOCK * wide;
    double *z = bent + BLOCK * wide, *weight = z + BLOCK * k, factor[LANES], most[LANES], total[LANES];
    integer entries = k * (k + 1) / 2 * wide * wide;
    memset(p->sums + piece * entries, 0, entries * sizeof(double));
    pad_rows(p, x, BLOCK);
    for (integer row = first; row < last; row += BLOCK) {
        integer many = smaller(BLOCK, last - row);
        for (integer r = 0; r < many; r += LANES) {
            read_rows(p, row + r, smaller(LANES, many - r), x + r * wide);
            read_weights(p, row + r, smaller(LANES, many - r), weight + r);
            logits(p, p->theta, x + r * wide, z + r * k);
            if (k > 1) softmax(k, z + r * k, most, total);
        }
        double *H = p->sums + piece * entries;
        for (integer a = 0; a < k; a++)
            for (integer b = a; b < k; b++, H += wide * wide) {
                for (integer r = 0; r < many; r += LANES) {
                    curvatures(p, a, b, weight + r, z + r * k, factor);
                    for (integer i = 0; i < LANES; i++)
#pragma omp simd
                        for (integer f = 0; f < wide; f++)
                            bent[(r + i) * wide + f] = factor[i] * x[(r + i) * wide + f];
                }
                for (integer i = 0; i < wide; i += TALL)
                    multiply(TALL, wide - i, many, bent + i, 1, wide, x + i, wide, H + i * wide + i, wide, 1);
            }
    }
}

/* x (n, d), float or double; y or code, weight (n); theta, along (k, wide), padded by zeros ->
   sums (pieces, k wide + 1) */
EXPORT logistic_sums_double(const void *x, integer single, integer down, integer across, const double *y,
                            const integer *code, const double *weight, const double *theta, const double *along,
                            double *sums, integer n, integer d, integer columns, integer k, integer wide,
                            integer rows) {
    Logits p = {x, single, down, across, y, code, weight, theta, along, sums, n, d, columns, k, wide, rows};
    share(sum_piece, &p, blocks_of(rows, n), 4 * n * wide * k);
}

/* As above -> H (pieces, k (k + 1) / 2, wide, wide) */
EXPORT logistic_hessian_double(const void *x, integer single, integer down, integer across, const double *weight,
                               const double *theta, double *H, integer n, integer d, integer columns, integer k,
                               integer wide, integer rows) {
    Logits p = {x, single, down, across, 0, 0, weight, theta, 0, H, n, d, columns, k, wide, rows};
    share(hessian_of_piece, &p, blocks_of(rows, n), n * wide * wide);
}

#endif
