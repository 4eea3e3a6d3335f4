/* The numbers in a block of a quantised weight, format by format        see tinygrad_ml/quant.py */
#pragma once
#include "common.h"
#ifdef __x86_64__
#include <immintrin.h>
#endif

/* A half (1 sign, 5 exponent, 10 fraction bits): its bits at the place of a float's, 2^112 apart. */
INLINE float half_at(const uint8_t *bytes) {
    uint16_t bits;
    memcpy(&bits, bytes, 2);
#ifdef __F16C__
    return _cvtsh_ss(bits);
#endif
    union { uint32_t bits; float value; } x = {(uint32_t)(bits & 0x7fff) << 13};
    x.value *= 0x1p112f;
    if ((bits & 0x7c00) == 0x7c00) x.bits |= 0x7f800000; /* infinity and NaN */
    return bits & 0x8000 ? -x.value : x.value;
}

/* 16 lanes, whatever registers there are. (Compilers take the widening apart into single bytes, so
   that it is named where there is an instruction for it.) */
typedef int32_t ints16 __attribute__((vector_size(64)));
typedef float floats16 __attribute__((vector_size(64)));
typedef real reals16 __attribute__((vector_size(16 * sizeof(real)), aligned(sizeof(real)), may_alias));

INLINE ints16 widened(const uint8_t *q) {
    ints16 wide;
#ifdef __AVX512F__
    wide = (ints16)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)q));
#elif defined(__AVX2__)
    __m128i bytes = _mm_loadu_si128((const __m128i *)q);
    __m256i halves[2] = {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
    memcpy(&wide, halves, sizeof wide);
#else
    for (int i = 0; i < 16; i++) wide[i] = q[i];
#endif
    return wide;
}

/* A half in all lanes: its bits are spread before they are converted. */
INLINE floats16 halves_at(const uint8_t *bytes) {
#ifdef __AVX512F__
    int16_t bits;
    memcpy(&bits, bytes, 2);
    return (floats16)_mm512_cvtph_ps(_mm256_set1_epi16(bits));
#else
    return (floats16){0} + half_at(bytes);
#endif
}

/* w = d q + m for 16 numbers, in float as the formats mean it */
INLINE void store(ints16 q, floats16 d, floats16 m, real *w) {
    floats16 numbers = d * __builtin_convertvector(q, floats16) + m;
    *(reals16 *)w = __builtin_convertvector(numbers, reals16);
}

/* Bit `first` + lane of a word, at the place of a fifth bit. */
INLINE ints16 fifth_bits(uint32_t word, uint32_t first) {
    const ints16 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return (((ints16){0} + (int32_t)(word >> first & 0xffff)) >> lanes & 1) << 4;
}

/* Two numbers a byte: the low halves of 16 bytes, then the high halves; `fifth` has one bit more
   for each of the 32. */
INLINE void nibbles(const uint8_t *bytes, uint32_t fifth, floats16 d, floats16 m, real *w) {
    ints16 q = widened(bytes);
    store((q & 15) | fifth_bits(fifth, 0), d, m, w);
    store(q >> 4 | fifth_bits(fifth, 16), d, m, w + 16);
}

INLINE uint32_t word_at(const uint8_t *bytes) {
    uint32_t word;
    memcpy(&word, bytes, 4);
    return word;
}

INLINE void decode_Q4_0(const uint8_t *b, real *w) {
    floats16 d = halves_at(b);
    nibbles(b + 2, 0, d, -8 * d, w);
}

INLINE void decode_Q4_1(const uint8_t *b, real *w) { nibbles(b + 4, 0, halves_at(b), halves_at(b + 2), w); }

INLINE void decode_Q5_0(const uint8_t *b, real *w) {
    floats16 d = halves_at(b);
    nibbles(b + 6, word_at(b + 2), d, -16 * d, w);
}

INLINE void decode_Q5_1(const uint8_t *b, real *w) {
    nibbles(b + 8, word_at(b + 4), halves_at(b), halves_at(b + 2), w);
}

INLINE void decode_Q8_0(const uint8_t *b, real *w) {
    floats16 d = halves_at(b);
    for (int i = 0; i < 32; i += 16) /* signed */
        store((widened(b + 2 + i) ^ 128) - 128, d, (floats16){0}, w + i);
}

/* Scale and offset of sub-block s out of 12 bytes of 6-bit numbers: the first four of each whole
   in the low bits of bytes 0-3 and 4-7, the others' low halves in bytes 8-11. */
INLINE void scale_and_offset(const uint8_t *p, int s, float d, float dmin, float *scale, float *offset) {
    int a = s < 4 ? p[s] & 63 : (p[s + 4] & 15) | (p[s - 4] >> 6) << 4;
    int b = s < 4 ? p[s + 4] & 63 : (p[s + 4] >> 4) | (p[s] >> 6) << 4;
    *scale = d * (float)a;
    *offset = -dmin * (float)b;
}

INLINE void decode_K(const uint8_t *b, const uint8_t *fifths, const uint8_t *q, real *w) {
    float d = half_at(b), dmin = half_at(b + 2), scale, offset;
    for (int s = 0; s < 8; s++, w += 32) {
        const uint8_t *bytes = q + s / 2 * 32;
        int shift = s % 2 * 4;
        scale_and_offset(b + 4, s, d, dmin, &scale, &offset);
        for (int i = 0; i < 32; i += 16) {
            ints16 x = widened(bytes + i) >> shift & 15;
            if (fifths) x |= (widened(fifths + i) >> s & 1) << 4;
            store(x, (floats16){0} + scale, (floats16){0} + offset, w + i);
        }
    }
}

INLINE void decode_Q4_K(const uint8_t *b, real *w) { decode_K(b, 0, b + 16, w); }

INLINE void decode_Q5_K(const uint8_t *b, real *w) { decode_K(b, b + 16, b + 48, w); }

INLINE void decode_Q6_K(const uint8_t *b, real *w) {
    float d = half_at(b + 208);
    const int8_t *scales = (const int8_t *)b + 192;
    for (int s = 0; s < 8; s++, w += 32) { /* 4 times 32 numbers share 64 bytes, and 32 of high bits */
        const uint8_t *low = b + s / 4 * 64 + s % 2 * 32, *high = b + 128 + s / 4 * 32;
        int shift = s % 4 / 2 * 4;
        for (int i = 0; i < 32; i += 16) {
            float scale = d * (float)scales[2 * s + i / 16];
            ints16 x = widened(low + i) >> shift & 15;
            x |= (widened(high + i) >> s % 4 * 2 & 3) << 4;
            store(x, (floats16){0} + scale, (floats16){0} - 32 * scale, w + i);
        }
    }
}

/* do(name, numbers in a block, bytes of a block), in the order of quant.FORMATS */
#define FORMATS(do) \
    do(Q4_0, 32, 18) do(Q4_1, 32, 20) do(Q5_0, 32, 22) do(Q5_1, 32, 24) do(Q8_0, 32, 34) \
    do(Q4_K, 256, 144) do(Q5_K, 256, 176) do(Q6_K, 256, 210)
