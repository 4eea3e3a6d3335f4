/* What this CPU can execute. */
#include "common.h"
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

__attribute__((visibility("default"))) int best_level(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    int f16c = __builtin_cpu_supports("f16c");
    if (f16c && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
        return 4;
    if (f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 3;
#endif
    return 0;
}

/* Whether AMX may multiply bfloat16 here: the CPU has it (amx-tile, amx-bf16), the system saves its
   registers, and lets this process use them, which is to be asked for before the first use: some
   containers refuse. For level v4 only, where XGETBV is there. */
__attribute__((visibility("default"))) int tiles_allowed(void) {
#if defined(__x86_64__) && defined(__linux__)
    enum { HAS = 1 << 24 | 1 << 22, SAVED = 3 << 17, REQUEST = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & HAS) != HAS) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & SAVED) == SAVED && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
    return 0;
#endif
}

/* A digest of the sources: a library left over from older ones is not to be used. */
__attribute__((visibility("default"))) const char *built_from(void) { return SOURCES; }
