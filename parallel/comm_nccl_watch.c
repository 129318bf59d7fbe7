#include "parallel/comm_nccl_group.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

/* ---- the end of the job ---- */

double nccl_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void nccl_sleep_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

/* Says why and ends this process; the launcher ends the others. Called by the watchdog too, so no
 * MPI. NOTE: no ncclCommAbort: it would let the waiting main thread go on, with what never arrived.
 * The end of the process stops NCCL's kernels and shows its peers that it is gone. */
void nccl_fail(struct nccl_group *g, enum status status, const char *format, ...)
{
    char why[512];
    va_list arguments;
    while (atomic_flag_test_and_set(&g->failing)) {
        nccl_sleep_ms(NCCL_POLL_MS); /* the other thread is at it, and ends this one */
    }
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    status_clean(why);
    fprintf(stderr, "switchyard: rank %d: nccl, %s: %s\n", g->world_rank, g->label, why);
    fflush(stderr);
    _exit(status_exit_code(status));
}

const char *nccl_explain(struct nccl_group *g, ncclResult_t result)
{
    const char *detail = g->nccl.last_error(g->comm);
    return detail != NULL && detail[0] != '\0' ? detail : g->nccl.error_string(result);
}

void nccl_cuda(struct nccl_group *g, cudaError_t error, const char *call)
{
    if (error != cudaSuccess) {
        nccl_fail(g, STATUS_INTERNAL, "%s number %llu: %s: %s", g->what,
                  (unsigned long long)g->number, call, cudaGetErrorString(error));
    }
}

/* ---- the watchdog ---- */

/* With the mutex held. Forgets what has ended. */
static void retire(struct nccl_group *g)
{
    while (g->first < g->next) {
        const cudaError_t state = cudaEventQuery(g->ring[g->first % NCCL_FOLLOWED].done);
        if (state == cudaErrorNotReady) {
            return;
        }
        if (state != cudaSuccess) {
            nccl_fail(g, STATUS_INTERNAL, "%s number %llu: %s",
                      g->ring[g->first % NCCL_FOLLOWED].what,
                      (unsigned long long)g->ring[g->first % NCCL_FOLLOWED].number,
                      cudaGetErrorString(state));
        }
        g->moved = nccl_seconds();
        g->first++;
    }
}

/* With the mutex held. */
static void look(struct nccl_group *g)
{
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = g->nccl.async_error(g->comm, &state);
    state = asked != ncclSuccess ? asked : state;
    if (state != ncclSuccess && state != ncclInProgress) {
        nccl_fail(g, STATUS_INTERNAL, "%s (the last operation issued is %s number %llu)",
                  nccl_explain(g, state), g->what, (unsigned long long)g->number);
    }
    retire(g);
    if (g->first == g->next) {
        return;
    }
    const struct nccl_followed *oldest = &g->ring[g->first % NCCL_FOLLOWED];
    const double since = oldest->issued > g->moved ? oldest->issued : g->moved;
    if (nccl_seconds() - since > (double)g->hang_seconds) {
        nccl_fail(
            g, STATUS_HANG,
            "%s number %llu (%zu bytes from here) has not finished for %d s: a rank of the group "
            "stopped or does something else",
            oldest->what, (unsigned long long)oldest->number, oldest->bytes, g->hang_seconds);
    }
}

static void *watch(void *argument)
{
    struct nccl_group *g = argument;
    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    /* NOTE: queries of this thread would else spoil the capture of another. */
    (void)cudaSetDevice(g->device);
    (void)cudaThreadExchangeStreamCaptureMode(&mode);
    pthread_mutex_lock(&g->mutex);
    while (!g->stop) {
        struct timespec until;
        look(g);
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += NCCL_POLL_MS * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        pthread_cond_timedwait(&g->wake, &g->mutex, &until);
    }
    pthread_mutex_unlock(&g->mutex);
    return NULL;
}

enum status nccl_watch_start(struct nccl_group *g)
{
    pthread_condattr_t monotonic;
    pthread_mutex_init(&g->mutex, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&g->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    g->watched = pthread_create(&g->thread, NULL, watch, g) == 0;
    return g->watched ? STATUS_OK
                      : status_fail(STATUS_RESOURCE, "run.comm nccl: no thread for the watchdog");
}

void nccl_watch_stop(struct nccl_group *g)
{
    if (!g->watched) {
        return;
    }
    pthread_mutex_lock(&g->mutex);
    g->stop = true;
    pthread_cond_signal(&g->wake);
    pthread_mutex_unlock(&g->mutex);
    pthread_join(g->thread, NULL);
    pthread_mutex_destroy(&g->mutex);
    pthread_cond_destroy(&g->wake);
    g->watched = false;
}
