#include "kernels/base/io_fault.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

/* NOTE: the one mutable state of the bottom layer: faults reach operations deep inside a save
 * without a parameter on every call. What is armed is written while no other thread has operations
 * under way; operations of several threads count themselves. */
static struct armed {
    enum io_fault fault;
    int64_t operation;
    bool sticky;
    atomic_llong done;
} modifying, reading;

static struct {
    void (*see)(void *, const struct io_event *);
    void *context;
    pthread_mutex_t one; /* event at a time is seen */
} observer = {.one = PTHREAD_MUTEX_INITIALIZER};

static void arm(struct armed *armed, enum io_fault fault, int64_t operation, bool sticky)
{
    armed->fault = fault;
    armed->operation = operation;
    armed->sticky = sticky;
    atomic_store(&armed->done, 0);
}

void io_fault_arm(enum io_fault fault, int64_t operation, bool sticky)
{
    arm(&modifying, fault, operation, sticky);
}

void io_fault_arm_reads(enum io_fault fault, int64_t operation, bool sticky)
{
    arm(&reading, fault, operation, sticky);
}

int64_t io_operations(void)
{
    return atomic_load(&modifying.done);
}

int64_t io_reads(void)
{
    return atomic_load(&reading.done);
}

void io_observe(void (*see)(void *, const struct io_event *), void *context)
{
    observer.see = see;
    observer.context = context;
}

bool io_observed(void)
{
    return observer.see != NULL;
}

static enum io_fault meet(struct armed *armed)
{
    const int64_t number = atomic_fetch_add(&armed->done, 1) + 1;
    const bool hit = number == armed->operation || (armed->sticky && number > armed->operation);
    const enum io_fault fault = hit ? armed->fault : IO_FAULT_NONE;
    if (fault == IO_FAULT_KILL_BEFORE) {
        raise(SIGKILL);
    }
    if (fault == IO_FAULT_SLOW) {
        nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
        return IO_FAULT_NONE;
    }
    return fault;
}

enum io_fault io_meet(void)
{
    return meet(&modifying);
}

enum io_fault io_meet_read(void)
{
    return meet(&reading);
}

bool io_fails(enum io_fault fault, bool space)
{
    const bool full = fault == IO_FAULT_ENOSPC || fault == IO_FAULT_EDQUOT;
    if (!full && fault != IO_FAULT_EIO) {
        return false;
    }
    errno = !full || !space ? EIO : fault == IO_FAULT_ENOSPC ? ENOSPC : EDQUOT;
    return true;
}

bool io_interrupted(enum io_fault *fault)
{
    if (*fault != IO_FAULT_EINTR) {
        return false;
    }
    *fault = IO_FAULT_NONE;
    errno = EINTR;
    return true;
}

void io_after(enum io_fault fault, const struct io_event *event)
{
    if (observer.see != NULL) {
        pthread_mutex_lock(&observer.one);
        observer.see(observer.context, event);
        pthread_mutex_unlock(&observer.one);
    }
    if (fault == IO_FAULT_KILL_AFTER || fault == IO_FAULT_KILL_TORN) {
        raise(SIGKILL);
    }
}
