/* Threads that share the pieces of a task by claiming them one after another.

   Why not OpenMP: its threads get equal parts, and each waits for all. On a machine that is busy
   with something else, or with the threads of a BLAS, a part waits for a core that is taken, for
   milliseconds. Here whoever has a core claims the next piece, the caller too: a thread that comes
   late finds less to do, and nobody waits but for pieces that are being computed.

   An idle thread looks for work for some 100 microseconds (the time between two kernels), then
   sleeps. A forked child has no threads yet, and starts its own. */
#define _GNU_SOURCE
#include "pool.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { GLANCES = 4000, CHEAP = 16384 };

static struct {
    Work work;
    const void *task;
    int64_t pieces;
} job;
static atomic_int_fast64_t remaining; /* pieces that nobody has claimed; may fall below 0 */
static atomic_int_fast64_t undone;    /* pieces that are not finished */
static atomic_int sleeping, waiting;  /* threads without work; whether the caller sleeps */
static atomic_int threads = 1;        /* that may work, the caller among them */
static int started;                   /* threads that there are, beside the callers */
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER; /* one task at a time */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER, finished = PTHREAD_COND_INITIALIZER;

static inline void glance(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Claim pieces and do them, until none is left. The job is read after a claim: it cannot change
   before that piece is done. A claim that came too late touches nothing but the count. */
static void claim(void) {
    int64_t left;
    while ((left = atomic_fetch_sub(&remaining, 1)) > 0) {
        job.work(job.task, job.pieces - left);
        if (atomic_fetch_sub(&undone, 1) == 1 && atomic_load(&waiting)) {
            pthread_mutex_lock(&lock);
            pthread_cond_signal(&finished);
            pthread_mutex_unlock(&lock);
        }
    }
}

static void *worker(void *number) {
    int mine = (int)(intptr_t)number;
    for (;;) {
        for (int i = 0; i < GLANCES && atomic_load_explicit(&remaining, memory_order_relaxed) <= 0; i++)
            glance();
        if (atomic_load(&remaining) <= 0 || mine >= atomic_load(&threads)) {
            pthread_mutex_lock(&lock);
            atomic_fetch_add(&sleeping, 1); /* before the last look: `share` looks the other way round */
            while (atomic_load(&remaining) <= 0 || mine >= atomic_load(&threads))
                pthread_cond_wait(&wake, &lock);
            atomic_fetch_sub(&sleeping, 1);
            pthread_mutex_unlock(&lock);
        }
        claim();
    }
    return NULL;
}

static void in_child(void) {
    started = 0;
    atomic_store(&sleeping, 0), atomic_store(&waiting, 0), atomic_store(&remaining, 0);
    pthread_mutex_init(&turn, NULL), pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&wake, NULL), pthread_cond_init(&finished, NULL);
}

static void start(int wanted) {
    static int registered;
    if (!registered) pthread_atfork(NULL, NULL, in_child), registered = 1;
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    while (started < wanted &&
           !pthread_create(&thread, &detached, worker, (void *)(intptr_t)(started + 1)))
        started++;
    pthread_attr_destroy(&detached);
}

static void wait_for_the_rest(void) {
    for (int i = 0; i < GLANCES && atomic_load_explicit(&undone, memory_order_acquire); i++) glance();
    if (!atomic_load(&undone)) return;
    pthread_mutex_lock(&lock); /* a piece's thread has lost its core: it may have this one */
    atomic_store(&waiting, 1);
    while (atomic_load(&undone)) pthread_cond_wait(&finished, &lock);
    atomic_store(&waiting, 0);
    pthread_mutex_unlock(&lock);
}

void share(Work work, const void *task, int64_t pieces, int64_t operations) {
    int alone = pieces < 2 || operations < CHEAP || atomic_load(&threads) < 2;
    if (alone || pthread_mutex_trylock(&turn)) { /* or another thread of Python is at it */
        for (int64_t i = 0; i < pieces; i++) work(task, i);
        return;
    }
    start(atomic_load(&threads) - 1);
    job.work = work, job.task = task, job.pieces = pieces;
    atomic_store(&undone, pieces);
    atomic_store(&remaining, pieces);
    if (atomic_load(&sleeping)) {
        pthread_mutex_lock(&lock);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&lock);
    }
    claim();
    wait_for_the_rest();
    pthread_mutex_unlock(&turn);
}

__attribute__((visibility("default"))) void set_threads(int n) { atomic_store(&threads, n < 1 ? 1 : n); }

/* ------------------------------------------------------------------------------- scratch memory */

typedef struct {
    void *memory[SLOTS];
    size_t bytes[SLOTS];
} Scratch;

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void drop(void *scratch) {
    for (int i = 0; i < SLOTS; i++) free(((Scratch *)scratch)->memory[i]);
    free(scratch);
}

static void make_key(void) { pthread_key_create(&key, drop); }

void *scratch(int slot, size_t bytes) {
    pthread_once(&once, make_key);
    Scratch *mine = pthread_getspecific(key);
    if (!mine) pthread_setspecific(key, mine = calloc(1, sizeof(Scratch)));
    if (mine->bytes[slot] < bytes) {
        free(mine->memory[slot]);
        mine->bytes[slot] = (bytes + 63) / 64 * 64;
        mine->memory[slot] = aligned_alloc(64, mine->bytes[slot]);
    }
    return mine->memory[slot];
}
