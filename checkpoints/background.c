#define _GNU_SOURCE
#include "checkpoints/background.h"

#include <assert.h>
#include <hdf5.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#include "parallel/cores.h"
#include "parallel/spans.h"

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* What a phase leaves for a thread. */
static void *work(void *context)
{
    struct background *background = context;
    const double began = now();
    const int64_t span = comm_span_begin(background->comm);
    if (background->phase == BACKGROUND_PUBLISHING) {
        save_publish(&background->save);
    } else {
        snapshot_copy(&background->snapshot);
        snapshot_wait(&background->snapshot);
        save_write(&background->save);
    }
    background->seconds += now() - began;
    comm_span_end_by(background->comm, SPAN_WRITER,
                     background->phase == BACKGROUND_WRITING ? "write" : "publish", span);
    atomic_store(&background->finished, true);
    return NULL;
}

static void *roam_and_work(void *context)
{
    const struct background *background = context;
    cores_roam(background->comm);
    return work(context);
}

static void join(struct background *background)
{
    if (background->running) {
        pthread_join(background->thread, NULL);
        background->running = false;
    }
}

/* Signals are for the caller's thread. */
static void start_thread(struct background *background, void *(*routine)(void *))
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    background->running = pthread_create(&background->thread, NULL, routine, background) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Where there is no thread to be had, the work is done here. */
static void launch(struct background *background, enum background_phase phase)
{
    join(background); /* of what came before, or of touching the memory */
    background->phase = phase;
    atomic_store(&background->finished, false);
    start_thread(background, background->roams ? roam_and_work : work);
    if (!background->running) {
        snapshot_finish(&background->snapshot);
        work(background);
    }
}

static void *touch(void *context)
{
    struct background *background = context;
    if (background->roams) {
        cores_roam(background->comm);
    }
    snapshot_touch(&background->snapshot);
    return NULL;
}

enum status background_init(struct background *background, struct comm *comm,
                            const struct checkpoint_slice *slices, int64_t count,
                            struct device *device, bool roams)
{
    hbool_t safe = 0;
    *background = (struct background){.comm = comm, .roams = roams};
    if (H5is_library_threadsafe(&safe) < 0 || !safe) { /* the training reads files meanwhile */
        return status_fail(STATUS_USAGE,
                           "checkpoint.async: the HDF5 library here is built without thread "
                           "safety: use Debian's, or checkpoint.async: false");
    }
    return snapshot_init(&background->snapshot, slices, count, device);
}

void background_touch(struct background *background)
{
    start_thread(background, touch); /* where there is none to be had, the first copy does it */
}

void background_free(struct background *background)
{
    if (background->running) {
        background_hold(background);
    }
    join(background);
    snapshot_free(&background->snapshot);
    free(background->state);
    *background = (struct background){0};
}

static enum status end(struct background *background)
{
    background->phase = BACKGROUND_IDLE;
    const enum status status = save_end(&background->save);
    free(background->state);
    background->state = NULL;
    return status;
}

enum status background_start(struct background *background, const char *root, int64_t step,
                             char *state, int keep_last)
{
    struct snapshot *snapshot = &background->snapshot;
    assert(background->phase == BACKGROUND_IDLE);
    background->state = state;
    background->seconds = 0;
    save_begin(&background->save, background->comm, root, step, state, snapshot->slice,
               snapshot->slices, keep_last);
    if (background->save.status != STATUS_OK) {
        return end(background);
    }
    snapshot_start(snapshot);
    launch(background, BACKGROUND_WRITING);
    return STATUS_OK;
}

void background_hold(struct background *background)
{
    if (background->phase == BACKGROUND_WRITING) {
        snapshot_finish(&background->snapshot);
    }
}

bool background_poll(struct background *background, enum status *status)
{
    if (background->phase == BACKGROUND_IDLE) {
        return false;
    }
    int32_t busy = !atomic_load(&background->finished);
    comm_all_reduce(background->comm, &busy, 1, DTYPE_I32, REDUCE_MAX);
    if (busy != 0) {
        return false;
    }
    join(background);
    if (background->phase == BACKGROUND_PUBLISHING) {
        *status = end(background);
        return true;
    }
    save_gather(&background->save);
    if (background->comm->rank == 0) {
        launch(background, BACKGROUND_PUBLISHING);
    } else {
        background->phase = BACKGROUND_PUBLISHING;
    }
    return false;
}

enum status background_finish(struct background *background)
{
    background_hold(background);
    join(background);
    if (background->phase == BACKGROUND_WRITING) {
        const double began = now();
        save_gather(&background->save);
        save_publish(&background->save);
        background->seconds += now() - began;
    }
    return end(background);
}
