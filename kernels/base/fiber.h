/* fiber: a function that can stop in its middle and be gone on with, on its own stack and the
 * thread of who goes on with it. It runs when it is told to, and until it yields: nothing is
 * concurrent.
 */
#ifndef KERNELS_FIBER_H
#define KERNELS_FIBER_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/base/status.h"

struct fiber {
    void *stack; /* owned, with a page below it that may not be touched */
    size_t bytes;
    void *impl; /* owned */
    void (*run)(void *);
    void *arg;
    bool done;
};

/* The stack is as large as a thread's; what is not touched takes no memory. Errors:
 * STATUS_RESOURCE. */
enum status fiber_init(struct fiber *fiber) __attribute__((warn_unused_result));
void fiber_free(struct fiber *fiber); /* accepts a zeroed one */

/* run(arg) will be what fiber_resume goes on with; the one before has ended. */
void fiber_start(struct fiber *fiber, void (*run)(void *), void *arg);
/* Until it yields, or, done, has returned. Not from within a fiber. */
void fiber_resume(struct fiber *fiber);
/* From within a fiber: back to who resumed it. Elsewhere nothing happens. */
void fiber_yield(void);

#endif
