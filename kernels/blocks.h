/* The numbers in a block of a quantised weight, format by format        see tinygrad_ml/quant.py

   decode_F(b, s, w): the 32 numbers of part s of the block at b, of which most formats have one. */
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

/* x in every lane: to take 0 away is nothing to compilers, to add it is (-0 + 0 = 0). */
INLINE floats16 all(float x) { return x - (floats16){0}; }

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

INLINE ints16 widened_signed(const uint8_t *q) {
#ifdef __AVX512F__
    return (ints16)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)q));
#else
    return (widened(q) ^ 128) - 128;
#endif
}

/* 32 bytes by fours, as no instruction shifts single ones: a mask takes what came from a neighbour. */
typedef uint32_t words8 __attribute__((vector_size(32)));
typedef uint8_t bytes32 __attribute__((vector_size(32)));

INLINE words8 words8_at(const uint8_t *bytes) {
    words8 words;
    memcpy(&words, bytes, sizeof words);
    return words;
}

/* A half in all lanes: its bits are spread before they are converted. */
INLINE floats16 halves_at(const uint8_t *bytes) {
#ifdef __AVX512F__
    int16_t bits;
    memcpy(&bits, bytes, 2);
    return (floats16)_mm512_cvtph_ps(_mm256_set1_epi16(bits));
#else
    return all(half_at(bytes));
#endif
}

/* w = d q + m for 16 numbers, in float as the formats mean it */
INLINE void store(ints16 q, floats16 d, floats16 m, real *w) {
    floats16 numbers = d * __builtin_convertvector(q, floats16) + m;
    *(reals16 *)w = __builtin_convertvector(numbers, reals16);
}

/* The same of the low four bits of q: one of sixteen numbers, which a lane can look up. */
INLINE void store_nibbles(ints16 q, floats16 d, floats16 m, real *w) {
#ifdef __AVX512F__
    const floats16 count = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    floats16 numbers = (floats16)_mm512_permutexvar_ps((__m512i)q, (__m512)(d * count + m));
    *(reals16 *)w = __builtin_convertvector(numbers, reals16);
#else
    store(q & 15, d, m, w);
#endif
}

/* Bit `first` + lane of a word, at the place of a fifth bit. */
INLINE ints16 fifth_bits(uint32_t word, uint32_t first) {
    const ints16 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return (((ints16){0} + (int32_t)(word >> first & 0xffff)) >> lanes & 1) << 4;
}

/* Two numbers a byte: the low halves of 16 bytes, then the high halves. */
INLINE void nibbles(const uint8_t *bytes, floats16 d, floats16 m, real *w) {
    ints16 q = widened(bytes);
    store_nibbles(q, d, m, w);
    store_nibbles(q >> 4, d, m, w + 16);
}

/* `fifth` has one bit more for each of the 32. */
INLINE void fives(const uint8_t *bytes, uint32_t fifth, floats16 d, floats16 m, real *w) {
    ints16 q = widened(bytes);
    store((q & 15) | fifth_bits(fifth, 0), d, m, w);
    store(q >> 4 | fifth_bits(fifth, 16), d, m, w + 16);
}

INLINE uint32_t word_at(const uint8_t *bytes) {
    uint32_t word;
    memcpy(&word, bytes, 4);
    return word;
}

INLINE void decode_Q4_0(const uint8_t *b, int s, real *w) {
    floats16 d = halves_at(b);
    nibbles(b + 2, d, -8 * d, w);
}

INLINE void decode_Q4_1(const uint8_t *b, int s, real *w) { nibbles(b + 4, halves_at(b), halves_at(b + 2), w); }

INLINE void decode_Q5_0(const uint8_t *b, int s, real *w) {
    floats16 d = halves_at(b);
    fives(b + 6, word_at(b + 2), d, -16 * d, w);
}

INLINE void decode_Q5_1(const uint8_t *b, int s, real *w) {
    fives(b + 8, word_at(b + 4), halves_at(b), halves_at(b + 2), w);
}

INLINE void decode_Q8_0(const uint8_t *b, int s, real *w) {
    floats16 d = halves_at(b);
    for (int i = 0; i < 32; i += 16) store(widened_signed(b + 2 + i), d, (floats16){0}, w + i);
}

/* Scale and offset of sub-block s out of 12 bytes of 6-bit numbers: the first four of each whole
   in the low bits of bytes 0-3 and 4-7, the others' low halves in bytes 8-11. */
INLINE void scale_and_offset(const uint8_t *p, int s, float d, float dmin, float *scale, float *offset) {
    uint32_t first = word_at(p), second = word_at(p + 4), rest = word_at(p + 8);
    uint32_t a = s < 4 ? first & 0x3f3f3f3f : (rest & 0x0f0f0f0f) | (first >> 6 & 0x03030303) << 4;
    uint32_t b = s < 4 ? second & 0x3f3f3f3f : (rest >> 4 & 0x0f0f0f0f) | (second >> 6 & 0x03030303) << 4;
    *scale = d * (float)(int32_t)(a >> s % 4 * 8 & 63);
    *offset = -dmin * (float)(int32_t)(b >> s % 4 * 8 & 63);
}

INLINE void decode_K(const uint8_t *b, const uint8_t *fifths, const uint8_t *q, int s, real *w) {
    float scale, offset;
    scale_and_offset(b + 4, s, half_at(b), half_at(b + 2), &scale, &offset);
    for (int i = 0; i < 32; i += 16) {
        ints16 x = widened(q + s / 2 * 32 + i) >> s % 2 * 4;
        if (fifths) store((x & 15) | (widened(fifths + i) >> s & 1) << 4, all(scale), all(offset), w + i);
        else store_nibbles(x, all(scale), all(offset), w + i);
    }
}

INLINE void decode_Q4_K(const uint8_t *b, int s, real *w) { decode_K(b, 0, b + 16, s, w); }

INLINE void decode_Q5_K(const uint8_t *b, int s, real *w) { decode_K(b, b + 16, b + 48, s, w); }

/* 4 times 32 numbers share 64 bytes, and 32 of high bits. */
INLINE void decode_Q6_K(const uint8_t *b, int s, real *w) {
    words8 low = words8_at(b + s / 4 * 64 + s % 2 * 32), high = words8_at(b + 128 + s / 4 * 32);
    words8 x = (low >> s % 4 / 2 * 4 & 0x0f0f0f0f) | (high >> s % 4 * 2 & 0x03030303) << 4;
    bytes32 q = (bytes32)x - 32;
    for (int i = 0; i < 2; i++) {
        float scale = half_at(b + 208) * (float)(int8_t)b[192 + 2 * s + i];
        store(widened_signed((uint8_t *)&q + 16 * i), all(scale), (floats16){0}, w + 16 * i);
    }
}

/* For s, the parts of a block of so many numbers; unrolled, for shifts and branches go by s. */
#define EACH_PART(length) _Pragma("GCC unroll 8") for (int s = 0; s < length / 32; s++)

/* do(name, numbers in a block, bytes of a block), in the order of quant.FORMATS */
#define FORMATS(do) \
    do(Q4_0, 32, 18) do(Q4_1, 32, 20) do(Q5_0, 32, 22) do(Q5_1, 32, 24) do(Q8_0, 32, 34) \
    do(Q4_K, 256, 144) do(Q5_K, 256, 176) do(Q6_K, 256, 210)
