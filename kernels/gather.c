/* Rows of a table, of any type        see gather.py */
#include "common.h"

#ifdef REAL_IS_FLOAT

enum { ROWS = 32 }; /* of a piece */

typedef struct {
    const char *table;
    const integer *index;
    char *y;
    integer step, count, n, bytes;
} Gather;

/* An index that is no row is seen to before; but where a call is made again with other numbers
   nobody looks at them, and its row is all ones: NaN in every float. */
static void some_rows(const void *task, integer piece) {
    const Gather *p = task;
    for (integer i = piece * ROWS; i < smaller((piece + 1) * ROWS, p->n); i++) {
        integer row = p->index[i];
        if (row >= 0 && row < p->count) memcpy(p->y + i * p->bytes, p->table + row * p->step, p->bytes);
        else memset(p->y + i * p->bytes, 0xff, p->bytes);
    }
}

/* y[i] = table[index[i]], n rows of so many bytes; the table has `count`, a `step` of bytes apart */
EXPORT gather_float(const char *table, integer step, integer count, const integer *index, char *y,
                    integer n, integer bytes) {
    Gather p = {table, index, y, step, count, n, bytes};
    share(some_rows, &p, blocks_of(ROWS, n), n * bytes);
}

#endif
