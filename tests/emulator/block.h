/* block: the state of the block, or cluster of blocks, that is being executed; shared by the
 * runtime's files only. */
#ifndef EMULATOR_BLOCK_H
#define EMULATOR_BLOCK_H

#include "emulator/emulator.h"
#include "emulator/fiber.h"
#include "emulator/race.h"

enum thread_state { THREAD_RUNS, THREAD_WAITS, THREAD_DONE };

struct emu_thread {
    struct fiber fiber; /* first, kept from block to block */
    uint3 index;
    int rank; /* of its block in the cluster */
    enum thread_state state;
    const char *waits_for; /* what, for the deadlock report */
    struct emu_at at;      /* where */
    const void *object;    /* on what: block_wake(object) */
};

/* Loops over memory must stay loops: memcpy and memset are intercepted by ThreadSanitizer. */
static inline void copy_bytes(void *to, const void *from, size_t bytes)
{
    uint8_t *t = (uint8_t *)to;
    const uint8_t *f = (const uint8_t *)from;
    size_t i = 0;
    for (; i + 16 <= bytes; i += 16) {
        typedef uint64_t pair __attribute__((vector_size(16), aligned(1), may_alias));
        *(pair *)(t + i) = *(const pair *)(f + i);
        asm volatile("" ::: "memory");
    }
    for (; i < bytes; i++) {
        t[i] = f[i];
        asm volatile("" ::: "memory");
    }
}
static inline void fill_bytes(void *to, int value, size_t bytes)
{
    uint8_t *t = (uint8_t *)to;
    uint64_t word = 0x0101010101010101u * (uint8_t)value;
    size_t i = 0;
    for (; i + 64 <= bytes; i += 64) {
        typedef uint64_t word_any __attribute__((aligned(1), may_alias));
        for (int j = 0; j < 8; j++)
            ((word_any *)(t + i))[j] = word;
        asm volatile("" ::: "memory");
    }
    for (; i < bytes; i++) {
        t[i] = (uint8_t)value;
        asm volatile("" ::: "memory");
    }
}

/* AddressSanitizer's view of memory this runtime hands out. Its header's macros would do nothing
 * here, as the runtime itself is not instrumented. */
#ifdef EMU_ASAN
extern "C" void __asan_poison_memory_region(void const volatile *p, size_t bytes);
extern "C" void __asan_unpoison_memory_region(void const volatile *p, size_t bytes);
static inline void asan_poison(const void *p, size_t bytes)
{
    __asan_poison_memory_region(p, bytes);
}
static inline void asan_unpoison(const void *p, size_t bytes)
{
    __asan_unpoison_memory_region(p, bytes);
}
#else
static inline void asan_poison(const void *, size_t)
{
}
static inline void asan_unpoison(const void *, size_t)
{
}
#endif

/* scheduler.cpp */
extern struct emu_thread emu_threads[EMU_THREADS_MAX];
int block_threads();               /* threads of the block, or of all blocks of the cluster */
int block_size();                  /* of one block */
int block_ranks();                 /* blocks of the cluster */
int block_rank();                  /* of the running thread's block in its cluster */
bool block_runs(int rank);         /* it has threads that have not returned */
int block_current();               /* number of the running thread, of all of the cluster */
struct emu_thread *block_thread(); /* the running thread */
void block_wait(const void *object, const char *waits_for, struct emu_at at);
void block_wake(const void *object, int first, int count); /* of the threads from first on */
void scheduler_seed_from_environment();

/* shared.cpp */
enum { SHARED_STRIDE = 256 << 10 }; /* from a block's shared memory to the next one's */
/* Of the block that was selected last, that of the running thread: */
extern uint8_t *emu_shared;       /* the generic proxy's view: what threads read and write */
extern uint8_t *emu_shared_async; /* the async proxy's view: TMA stores and wgmma read this one */
void shared_select(int rank);
void shared_begin(size_t dynamic_bytes, size_t most); /* most: with static ones */
/* Address of a range inside what the block has allocated, or a report. */
uint32_t shared_range(const void *p, size_t bytes, size_t align, const char *what,
                      struct emu_at at);
void shared_check(uint32_t address, size_t bytes, const char *what, struct emu_at at);
void shared_sync_async_view(); /* before the async proxy reads: sees what was fenced */

/* barriers.cpp */
void barriers_begin();
void barriers_end(struct emu_at kernel);
/* Waits until all 32 lanes of the warp are here; run(what each gave) is called once, before any
 * goes on. Orders nothing. */
void warp_run(uint64_t value, void (*run)(const uint64_t *slots), struct emu_at at);
/* Waits until all 128 threads of the warpgroup are here; run(warpgroup's first thread, kind's
 * argument) is called once. Kinds are names for the report. Orders nothing. */
void warpgroup_meet(const char *kind, void (*run)(int first_thread, int argument), int argument,
                    struct emu_at at);

/* mbarrier.cpp */
void mbarriers_begin();
void mbarriers_end(struct emu_at kernel);
void mbarrier_complete_tx(uint64_t *bar, uint32_t bytes);
void mbarrier_check_async(uint64_t *bar, struct emu_at at);

/* tma.cpp */
void tma_begin();
bool tma_step(); /* advances copies in flight; false: there are none */
void tma_end(struct emu_at kernel);
/* The load in flight that writes this address of the running thread's block, or NULL. */
const struct emu_at *tma_load_at(uint32_t address);

/* cp_async.cpp */
void cp_async_begin();
void cp_async_end(struct emu_at kernel);

/* wgmma.cpp */
void wgmma_begin();
void wgmma_end(struct emu_at kernel);
/* A wgmma of that block in flight that reads from this shared range, or NULL. */
const struct emu_at *wgmma_reading(int rank, uint32_t address, uint32_t bytes);

/* device.cpp */
size_t device_shared_allowed(const void *kernel);
size_t device_shared_most(const void *kernel); /* static and dynamic bytes together */

#endif
