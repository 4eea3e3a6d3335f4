/* The tile instructions of AMX in plain C, and kernels/half.c compiled to call them.

   Each follows the operation that Intel's manual gives (SDM volume 2: LDTILECFG, TILELOADD, TILESTORED,
   TILEZERO, TILERELEASE, TDPBF16PS). Where the CPU would stop the program nothing is done, and the
   first fault is kept for `fault`. test_amx.py compiles this beside pool.c.

   `trap` lets the instructions themselves run where the CPU has none: it stops at each. */
#define _GNU_SOURCE
#include <math.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#define VISIBLE __attribute__((visibility("default")))

enum { TILES = 8, MOST_ROWS = 16, MOST_BYTES = 64 }; /* of palette 1 */

static _Thread_local struct {
    int configured;
    int rows[TILES], bytes[TILES];
    uint32_t data[TILES][MOST_ROWS][MOST_BYTES / 4];
} cpu;

static _Atomic(const char *) first; /* fault */
static atomic_long in_use, loads, products, shapes; /* threads that have tiles; what was executed */

static int stop(const char *why) {
    const char *none = NULL;
    atomic_compare_exchange_strong(&first, &none, why);
    return 0;
}

/* The first fault since the last call, or NULL. */
VISIBLE const char *fault(void) { return atomic_exchange(&first, NULL); }

/* 0 threads with tiles, 1 loads, 2 products, 3 configurations; the last three since the last call. */
VISIBLE long counted(int what) {
    if (what == 0) return atomic_load(&in_use);
    return atomic_exchange(what == 1 ? &loads : what == 2 ? &products : &shapes, 0);
}

VISIBLE void tiles_release(void) {
    if (cpu.configured) atomic_fetch_sub(&in_use, 1);
    memset(&cpu, 0, sizeof cpu);
}

/* 64 bytes: palette, start row, 14 of zeros; bytes a row, 16 bits for each of 8 tiles, 16 of zeros;
   rows, 8 bits for each, 8 of zeros. */
static const char *wrong_in(const uint8_t *at, const uint16_t *bytes) {
    if (at[0] > 1) return "LDTILECFG: no such palette";
    if (at[1]) return "LDTILECFG: a start row"; /* which the CPU takes, and nobody needs */
    for (int i = 2; i < 16; i++)
        if (at[i]) return "LDTILECFG: a reserved byte is not 0";
    for (int t = 0; t < TILES; t++) {
        if (bytes[8 + t] || at[56 + t]) return "LDTILECFG: a tile above the seventh";
        if (bytes[t] > MOST_BYTES) return "LDTILECFG: more than 64 bytes in a row";
        if (at[48 + t] > MOST_ROWS) return "LDTILECFG: more than 16 rows";
        if (!bytes[t] != !at[48 + t]) return "LDTILECFG: rows without bytes, or bytes without rows";
    }
    return NULL;
}

VISIBLE void tiles_configure(const void *memory) {
    const uint8_t *at = memory;
    uint16_t bytes[16];
    memcpy(bytes, at + 16, sizeof bytes);
    const char *wrong = at[0] ? wrong_in(at, bytes) : NULL;
    if (wrong) {
        stop(wrong);
        return;
    }
    tiles_release();
    if (at[0] == 0) return;
    cpu.configured = 1;
    atomic_fetch_add(&in_use, 1), atomic_fetch_add(&shapes, 1);
    for (int t = 0; t < TILES; t++) cpu.rows[t] = at[48 + t], cpu.bytes[t] = bytes[t];
}

static int is_valid(int t) {
    if (!cpu.configured) return stop("no tiles are configured");
    if (t < 0 || t >= TILES || !cpu.rows[t]) return stop("a tile without a shape");
    return 1;
}

static int is_of_words(int t) {
    return is_valid(t) && (cpu.bytes[t] % 4 == 0 || stop("a row of a tile is no whole number of words"));
}

VISIBLE void tile_zero(int t) {
    if (is_valid(t)) memset(cpu.data[t], 0, sizeof cpu.data[t]);
}

VISIBLE void tile_load(int t, const void *from, int64_t down) {
    if (!is_of_words(t)) return;
    atomic_fetch_add_explicit(&loads, 1, memory_order_relaxed);
    memset(cpu.data[t], 0, sizeof cpu.data[t]);
    for (int r = 0; r < cpu.rows[t]; r++)
        memcpy(cpu.data[t][r], (const char *)from + r * down, cpu.bytes[t]);
}

VISIBLE void tile_store(int t, void *to, int64_t down) {
    if (!is_of_words(t)) return;
    for (int r = 0; r < cpu.rows[t]; r++) memcpy((char *)to + r * down, cpu.data[t][r], cpu.bytes[t]);
}

static float as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Subnormals are zeros where they come in and where they would come out (DAZ, FTZ). */
static float flushed(float x) { return fpclassify(x) == FP_SUBNORMAL ? copysignf(0, x) : x; }
static float low(uint32_t pair) { return flushed(as_float(pair << 16)); }
static float high(uint32_t pair) { return flushed(as_float(pair & 0xFFFF0000)); }

VISIBLE void tile_multiply(int c, int a, int b) {
    if (c == a || a == b || b == c) {
        stop("TDPBF16PS: one tile twice");
        return;
    }
    if (!is_of_words(c) || !is_of_words(a) || !is_of_words(b)) return;
    if (cpu.rows[c] != cpu.rows[a]) stop("TDPBF16PS: rows of C and A differ");
    else if (cpu.bytes[c] != cpu.bytes[b]) stop("TDPBF16PS: columns of C and B differ");
    else if (cpu.bytes[a] / 4 != cpu.rows[b]) stop("TDPBF16PS: columns of A and rows of B differ");
    else {
        atomic_fetch_add_explicit(&products, 1, memory_order_relaxed);
        for (int m = 0; m < cpu.rows[c]; m++)
            for (int n = 0; n < cpu.bytes[c] / 4; n++) {
                float even = 0, odd = 0; /* the two of a pair are summed apart, added at the end */
                for (int k = 0; k < cpu.rows[b]; k++) {
                    uint32_t x = cpu.data[a][m][k], y = cpu.data[b][k][n];
                    even = flushed(fmaf(low(x), low(y), even));
                    odd = flushed(fmaf(high(x), high(y), odd));
                }
                float sum = flushed(flushed(as_float(cpu.data[c][m][n])) + flushed(even + odd));
                memcpy(&cpu.data[c][m][n], &sum, sizeof sum);
            }
    }
}

#if defined(__x86_64__) && defined(__linux__)
#include <ucontext.h>

static struct sigaction before;

/* VEX.128.0F38.W0, the operands as amx.h writes them: tiles below 8, [rax], [rax + rcx]. */
static void trapped(int number, siginfo_t *info, void *context) {
    (void)info;
    greg_t *now = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *at = (const uint8_t *)now[REG_RIP];
    uint32_t what = at[2] << 16 | at[3] << 8 | at[4];
    int reg = at[4] >> 3 & 7, rm = at[4] & 7, third = 15 - (at[2] >> 3 & 15), length = 5;
    void *address = (void *)now[REG_RAX];
    int ours = at[0] == 0xc4 && at[1] == 0xe2;
    if (ours && what == 0x784900) tiles_configure(address);
    else if (ours && what == 0x7849c0) tiles_release();
    else if (ours && (what & 0xffffc7) == 0x7b49c0) tile_zero(reg);
    else if (ours && (what & 0xffffc7) == 0x7b4b04 && at[5] == 8)
        tile_load(reg, address, now[REG_RCX]), length = 6;
    else if (ours && (what & 0xffffc7) == 0x7a4b04 && at[5] == 8)
        tile_store(reg, address, now[REG_RCX]), length = 6;
    else if (ours && (what & 0x87ffc0) == 0x025cc0) tile_multiply(reg, rm, third);
    else sigaction(number, &before, NULL), length = 0; /* somebody else's: it comes again */
    now[REG_RIP] += length;
}

VISIBLE void trap(int on) {
    struct sigaction ours = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (on) sigaction(SIGILL, &ours, &before);
    else sigaction(SIGILL, &before, NULL);
}
#endif

#define TILES_CONFIGURE tiles_configure
#define TILES_RELEASE tiles_release
#define TILE_ZERO tile_zero
#define TILE_LOAD tile_load
#define TILE_STORE tile_store
#define TILE_MULTIPLY tile_multiply
#include "half.c"
