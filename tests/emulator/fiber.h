/* fiber: a stack of its own that runs until it yields; the switch is hand-written on x86-64.
 *
 * AddressSanitizer and ThreadSanitizer are told of every switch (EMU_ASAN, EMU_TSAN). A switch by
 * itself orders nothing in the race checker's eyes.
 */
#ifndef EMULATOR_FIBER_H
#define EMULATOR_FIBER_H

#include <stddef.h>
#include <stdint.h>

struct fiber {
    void *stack_pointer; /* saved while the fiber does not run */
    char *stack;         /* owned, kept for the life of the process */
    size_t stack_bytes;  /* what is used of it */
    void (*entry)();     /* called on the stack; ends with fiber_yield(f, true) */
    void *race_fiber;    /* ThreadSanitizer's */
    void *fake_stack;    /* AddressSanitizer's */
    void *context;       /* owned, a ucontext_t: where there is no hand-written switch. Apart, as
                            schedulers       look at every thread's few words in turn */
};

/* Puts the fiber at the start of entry; the stack is allocated the first time. */
void fiber_start(struct fiber *f, void (*entry)());
/* Called by the scheduler: runs the fiber until it yields. */
void fiber_resume(struct fiber *f);
/* Called on the fiber: back to the scheduler. last: the fiber is not resumed again. */
void fiber_yield(struct fiber *f, bool last);
uint64_t fiber_switches();

#endif
