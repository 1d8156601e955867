/* Threads that share one piece of work with the caller: those of the OpenMP that torch has running,
 * where native.py found it, or else a small pool.
 *
 * After a parallel operation torch's threads keep spinning for the next one. A thread of ours would
 * have to share their core, which cost 40 % of the time (64 images 64 -> 224 on two cores between
 * operations of torch: 1.02 against 1.5 ms); theirs begin at once.
 *
 * The pool's helpers are asked, never awaited: the caller works too, and waits only for helpers
 * that did begin. A second caller finds the pool busy and works alone. A forked child starts
 * without helpers and makes its own. Without POSIX threads the caller always works alone.
 */
#ifndef LRV_NATIVE_THREADS_H
#define LRV_NATIVE_THREADS_H

typedef void (*Work)(void *context);
typedef void (*Team)(Work work, void *context, unsigned threads, unsigned flags);

#if defined(_WIN32)

static void threads_run(Team team, Work work, void *context, int threads) {
    (void)team;
    (void)threads;
    work(context);
}

#define ATOMIC_ADD(counter, amount) ((*(counter) += (amount)) - (amount))
#define ATOMIC_SET(flag, value) (*(flag) = (value))

#else

#include <pthread.h>
#include <signal.h>

#define ATOMIC_ADD(counter, amount) __atomic_fetch_add(counter, amount, __ATOMIC_RELAXED)
#define ATOMIC_SET(flag, value) __atomic_store_n(flag, value, __ATOMIC_RELAXED)
#define MOST_HELPERS 63

static struct {
    pthread_mutex_t busy; /* held by the caller whose work it is */
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake, idle;
    int helpers; /* threads that exist */
    int wanted;  /* helpers that may still join */
    int joined;  /* helpers at work */
    Work work;
    void *context;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .idle = PTHREAD_COND_INITIALIZER};

static void pool_forget(void) {
    pthread_mutex_init(&pool.busy, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_cond_init(&pool.idle, NULL);
    pool.helpers = pool.wanted = pool.joined = 0;
}

static void pool_watch_forks(void) { pthread_atfork(NULL, NULL, pool_forget); }

static void *pool_help(void *unused) {
    (void)unused;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (pool.wanted == 0) pthread_cond_wait(&pool.wake, &pool.lock);
        pool.wanted--;
        pool.joined++;
        Work work = pool.work;
        void *context = pool.context;
        pthread_mutex_unlock(&pool.lock);
        work(context);
        pthread_mutex_lock(&pool.lock);
        if (--pool.joined == 0) pthread_cond_signal(&pool.idle);
    }
    return NULL;
}

/* Make helpers up to `count`; fewer where the system refuses. Signals stay with Python. */
static void pool_grow(int count) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, pool_watch_forks);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.helpers < count && pool.helpers < MOST_HELPERS) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, pool_help, NULL)) break;
        pthread_detach(thread);
        pool.helpers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void threads_run(Team team, Work work, void *context, int threads) {
    if (team && threads > 1) {
        team(work, context, (unsigned)threads, 0);
        return;
    }
    if (threads <= 1 || pthread_mutex_trylock(&pool.busy)) {
        work(context);
        return;
    }
    pthread_mutex_lock(&pool.lock);
    if (pool.helpers < threads - 1) pool_grow(threads - 1);
    pool.work = work;
    pool.context = context;
    pool.wanted = threads - 1 < pool.helpers ? threads - 1 : pool.helpers;
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);

    work(context);

    pthread_mutex_lock(&pool.lock);
    pool.wanted = 0;
    while (pool.joined) pthread_cond_wait(&pool.idle, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool.busy);
}

#endif
#endif
