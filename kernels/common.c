/* What this CPU can execute. */
#include "common.h"

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

/* A digest of the sources: a library left over from older ones is not to be used. */
__attribute__((visibility("default"))) const char *built_from(void) { return SOURCES; }
