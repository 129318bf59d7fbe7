#include "emulator/fiber.h"

#include "emulator/race.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#ifdef EMU_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

/* Frames are larger and redzones wide under AddressSanitizer. */
#ifdef EMU_ASAN
enum { STACK_BYTES = 512 << 10, GUARD_BYTES = 4096 };
#else
enum { STACK_BYTES = 128 << 10, GUARD_BYTES = 4096 };
#endif
/* Stacks begin where others' do not in a page, or all threads' locals would share a few lines of
 * the cache. */
enum { COLOURS = 16, COLOUR_BYTES = 256 };

#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
#define HAVE_SWITCH 1
#endif

static uint64_t switches;
static int colour; /* of the next stack */
static struct fiber *starting;
#ifdef EMU_ASAN
static void *scheduler_fake_stack;
static const void *scheduler_stack;
static size_t scheduler_stack_bytes;
#endif
#ifdef EMU_TSAN
static void *scheduler_race_fiber;
#endif

#ifdef HAVE_SWITCH
/* Saves the callee-saved registers and the stack pointer, loads the other's: 15 ns, where
 * ucontext's two system calls for the signal mask take 250. */
extern "C" void emu_switch_stack(void **save, void *load);
asm(R"(
.text
.globl emu_switch_stack
.hidden emu_switch_stack
.type emu_switch_stack,@function
emu_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch_stack, .-emu_switch_stack
)");
static void *scheduler_stack_pointer;
#else
static ucontext_t scheduler_context;
#endif

static void first_call()
{
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
    starting->entry();
    abort(); /* entry ends with fiber_yield(f, true) */
}

void fiber_start(struct fiber *f, void (*entry)())
{
    if (!f->stack) {
        char *p = (char *)mmap(nullptr, STACK_BYTES + GUARD_BYTES, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED || mprotect(p, GUARD_BYTES, PROT_NONE) != 0) {
            perror("emulator: stack of a CUDA thread");
            exit(71);
        }
        f->stack = p + GUARD_BYTES;
        f->stack_bytes = (size_t)(STACK_BYTES - colour++ % COLOURS * COLOUR_BYTES);
    }
    f->entry = entry;
    f->fake_stack = nullptr;
#ifdef HAVE_SWITCH
    void **top = (void **)(f->stack + f->stack_bytes);
    *--top = nullptr; /* where a return address would be: keeps the ABI's alignment */
    *--top = (void *)first_call;
    for (int i = 0; i < 6; i++)
        *--top = nullptr;
    f->stack_pointer = top;
#else
    if (!f->context)
        f->context = new ucontext_t;
    ucontext_t *context = (ucontext_t *)f->context;
    getcontext(context);
    context->uc_stack.ss_sp = f->stack;
    context->uc_stack.ss_size = f->stack_bytes;
    context->uc_link = nullptr;
    makecontext(context, first_call, 0);
#endif
}

void fiber_resume(struct fiber *f)
{
    switches++;
    starting = f;
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(&scheduler_fake_stack, f->stack, f->stack_bytes);
#endif
#ifdef EMU_TSAN
    scheduler_race_fiber = race_current();
#endif
    race_switch(&f->race_fiber);
#ifdef HAVE_SWITCH
    emu_switch_stack(&scheduler_stack_pointer, f->stack_pointer);
#else
    swapcontext(&scheduler_context, (ucontext_t *)f->context);
#endif
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

void fiber_yield(struct fiber *f, bool last)
{
    switches++;
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(last ? nullptr : &f->fake_stack, scheduler_stack,
                                   scheduler_stack_bytes);
#else
    (void)last;
#endif
#ifdef EMU_TSAN
    race_switch(&scheduler_race_fiber);
#endif
#ifdef HAVE_SWITCH
    emu_switch_stack(&f->stack_pointer, scheduler_stack_pointer);
#else
    swapcontext((ucontext_t *)f->context, &scheduler_context);
#endif
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(f->fake_stack, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

uint64_t fiber_switches()
{
    return switches;
}
