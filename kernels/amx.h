/* The instructions of AMX that multiply bfloat16, by their bytes        Intel SDM, volume 2

   Their names are known to binutils from 2.35 on and to compilers that are asked for AMX; their bytes
   to any, so that the one library of level v4 holds them. Whether they may run is asked at run time
   (common.c). An address is handed over in rax, the bytes from one row to the next in rcx.
   tests/amx_standin.c has functions of plain C in their place. */
#pragma once

#if !defined(TILE_LOAD) && defined(__AVX512F__)
#define TILE(...) __asm__ volatile(".byte 0xc4, 0xe2, " __VA_ARGS__)
#define TILES_CONFIGURE(shapes) TILE("0x78, 0x49, 0x00" : : "a"(shapes) : "memory")
#define TILES_RELEASE() TILE("0x78, 0x49, 0xc0")
#define TILE_ZERO(t) TILE("0x7b, 0x49, 0xc0 + 8 * " #t)
#define TILE_LOAD(t, from, down) TILE("0x7b, 0x4b, 0x04 + 8 * " #t ", 8" : : "a"(from), "c"(down) : "memory")
#define TILE_STORE(t, to, down) TILE("0x7a, 0x4b, 0x04 + 8 * " #t ", 8" : : "a"(to), "c"(down) : "memory")
#define TILE_MULTIPLY(c, a, b) TILE("0x7a - 8 * " #b ", 0x5c, 0xc0 + 8 * " #c " + " #a) /* c += a b */
#endif
