#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "kernels/base/fiber.h"

#include <assert.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

/* For ThreadSanitizer a stack is a thread that runs in turn with others. NOTE: no function, whose
 * entry and exit would be of two threads. */
#ifdef __SANITIZE_THREAD__
#define THREAD_NEW() __tsan_create_fiber(0)
#define THREAD_END(thread) __tsan_destroy_fiber(thread)
#define THREAD_THIS() __tsan_get_current_fiber()
#define THREAD_SWITCH(thread) __tsan_switch_to_fiber(thread, 0)
#define UNSEEN __attribute__((no_sanitize_thread))
#else
#define THREAD_NEW() NULL
#define THREAD_END(thread) (void)(thread)
#define THREAD_THIS() NULL
#define THREAD_SWITCH(thread) (void)(thread)
#define UNSEEN
#endif

/* Of a thread of Linux. */
static const size_t STACK_BYTES = (size_t)8 << 20;

struct contexts {
    ucontext_t own, back;
    /* The sanitizers', which want to know of every change of stacks: ThreadSanitizer's, */
    void *own_thread, *back_thread;
    /* and AddressSanitizer's */
    void *own_frames, *back_frames;
    const void *back_stack;
    size_t back_bytes;
};

/* Of this thread; NULL: it is in none. */
static _Thread_local struct fiber *running;

/* contexts: or NULL. */
static void end_thread(struct contexts *contexts)
{
    if (contexts != NULL && contexts->own_thread != NULL) {
        THREAD_END(contexts->own_thread);
        contexts->own_thread = NULL;
    }
}

enum status fiber_init(struct fiber *fiber)
{
    const size_t guard = (size_t)sysconf(_SC_PAGESIZE);
    *fiber = (struct fiber){.bytes = STACK_BYTES, .done = true};
    fiber->impl = calloc(1, sizeof(struct contexts));
    void *stack = mmap(NULL, guard + STACK_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    fiber->stack = stack == MAP_FAILED ? NULL : stack;
    if (fiber->impl == NULL || fiber->stack == NULL || mprotect(stack, guard, PROT_NONE) != 0) {
        fiber_free(fiber);
        return status_fail(STATUS_RESOURCE, "out of memory for a stack of %zu bytes", STACK_BYTES);
    }
    return STATUS_OK;
}

void fiber_free(struct fiber *fiber)
{
    if (fiber->stack != NULL) {
        munmap(fiber->stack, (size_t)sysconf(_SC_PAGESIZE) + fiber->bytes);
    }
    end_thread(fiber->impl);
    free(fiber->impl);
    *fiber = (struct fiber){0};
}

#ifdef __SANITIZE_ADDRESS__
static void leave(void **frames, const void *stack, size_t bytes)
{
    __sanitizer_start_switch_fiber(frames, stack, bytes);
}

static void arrive(void *frames, const void **stack, size_t *bytes)
{
    __sanitizer_finish_switch_fiber(frames, stack, bytes);
}
#else
static void leave(void **frames, const void *stack, size_t bytes)
{
    (void)frames, (void)stack, (void)bytes;
}

static void arrive(void *frames, const void **stack, size_t *bytes)
{
    (void)frames, (void)stack, (void)bytes;
}
#endif

UNSEEN static void enter(void)
{
    struct fiber *fiber = running;
    struct contexts *contexts = fiber->impl;
    arrive(NULL, &contexts->back_stack, &contexts->back_bytes);
    fiber->run(fiber->arg);
    fiber->done = true;
    leave(NULL, contexts->back_stack, contexts->back_bytes); /* and not again */
    THREAD_SWITCH(contexts->back_thread);
}

void fiber_start(struct fiber *fiber, void (*run)(void *), void *arg)
{
    struct contexts *contexts = fiber->impl;
    assert(fiber->done);
    fiber->run = run;
    fiber->arg = arg;
    fiber->done = false;
    end_thread(contexts);
    contexts->own_thread = THREAD_NEW();
    getcontext(&contexts->own);
    contexts->own.uc_stack.ss_sp = (char *)fiber->stack + sysconf(_SC_PAGESIZE);
    contexts->own.uc_stack.ss_size = fiber->bytes;
    contexts->own.uc_link = &contexts->back;
    makecontext(&contexts->own, enter, 0);
}

void fiber_resume(struct fiber *fiber)
{
    struct contexts *contexts = fiber->impl;
    assert(running == NULL && !fiber->done);
    running = fiber;
    leave(&contexts->back_frames, contexts->own.uc_stack.ss_sp, fiber->bytes);
    contexts->back_thread = THREAD_THIS();
    THREAD_SWITCH(contexts->own_thread);
    swapcontext(&contexts->back, &contexts->own);
    arrive(contexts->back_frames, NULL, NULL);
    running = NULL;
}

void fiber_yield(void)
{
    if (running == NULL) {
        return;
    }
    struct contexts *contexts = running->impl;
    leave(&contexts->own_frames, contexts->back_stack, contexts->back_bytes);
    THREAD_SWITCH(contexts->back_thread);
    swapcontext(&contexts->own, &contexts->back);
    arrive(contexts->own_frames, &contexts->back_stack, &contexts->back_bytes);
}
