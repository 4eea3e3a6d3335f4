/* One pool of threads for all kernels, matrix products too        see pool.c */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define HIDDEN __attribute__((visibility("hidden")))

/* Piece i of a task. Pieces run in any order and on any thread: what one writes, no other touches. */
typedef void (*Work)(const void *task, int64_t i);

/* work(task, i) for i = 0 ... pieces - 1, and back when all are done. `operations` is what they
   cost together: below some 16,000 the caller does them alone. How a task is cut into pieces may
   depend on its shape, never on the number of threads: so results do not depend on it either. */
HIDDEN void share(Work work, const void *task, int64_t pieces, int64_t operations);

/* At least so many bytes of the calling thread's own, aligned to 64; what was there is lost. They
   are kept from call to call, so that nothing is fetched from the system twice. */
enum { SHARED, OWN, SLOTS }; /* of the caller for all pieces; of the thread that runs a piece */
HIDDEN void *scratch(int slot, size_t bytes);
