/* Blocks of a quantised weight as numbers        see dequantize.py */
#include "blocks.h"

enum { BYTES = 16384 }; /* of a piece, about */

typedef struct {
    const uint8_t *blocks;
    real *w;
    integer count, format;
} Blocks;

#define DECODE(name, length, size) \
    static void pieces_##name(const void *task, integer piece) { \
        const Blocks *t = task; \
        integer some = BYTES / size, end = smaller((piece + 1) * some, t->count); \
        for (integer i = piece * some; i < end; i++) \
            EACH_PART(length) decode_##name(t->blocks + i * size, s, t->w + i * length + 32 * s); \
    }
FORMATS(DECODE)

EXPORT NAME(dequantize)(real *w, const uint8_t *blocks, integer count, integer format) {
    Blocks t = {blocks, w, count, format};
    integer number = 0;
#define CALL(name, length, size) \
    if (format == number++) share(pieces_##name, &t, blocks_of(BYTES / size, count), 2 * count * length);
    FORMATS(CALL)
}
