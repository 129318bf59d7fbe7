#include "kernels/base/io_fault.h"

#include <errno.h>
#include <signal.h>

/* NOTE: the one mutable state of the bottom layer: faults reach operations deep inside a save
 * without a parameter on every call. Not locked: tests arm before threads start. */
static struct armed {
    enum io_fault fault;
    int64_t operation, done;
    bool sticky;
} modifying, reading;

static struct {
    void (*see)(void *, const struct io_event *);
    void *context;
} observer;

void io_fault_arm(enum io_fault fault, int64_t operation, bool sticky)
{
    modifying = (struct armed){.fault = fault, .operation = operation, .sticky = sticky};
}

void io_fault_arm_reads(enum io_fault fault, int64_t operation, bool sticky)
{
    reading = (struct armed){.fault = fault, .operation = operation, .sticky = sticky};
}

int64_t io_operations(void)
{
    return modifying.done;
}

int64_t io_reads(void)
{
    return reading.done;
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
    armed->done++;
    const bool hit =
        armed->done == armed->operation || (armed->sticky && armed->done > armed->operation);
    const enum io_fault fault = hit ? armed->fault : IO_FAULT_NONE;
    if (fault == IO_FAULT_KILL_BEFORE) {
        raise(SIGKILL);
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
        observer.see(observer.context, event);
    }
    if (fault == IO_FAULT_KILL_AFTER || fault == IO_FAULT_KILL_TORN) {
        raise(SIGKILL);
    }
}
