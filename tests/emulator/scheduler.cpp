#include "emulator/block.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

uint3 emu_thread_index, emu_block_index;
dim3 emu_block_dim, emu_grid_dim;
struct emu_thread emu_threads[EMU_THREADS_MAX];

static struct {
    int threads, live, current; /* current -1: the scheduler runs */
    int size, ranks;            /* threads of a block, blocks of a cluster */
    int live_of[EMU_CLUSTER_MAX], late[EMU_CLUSTER_MAX]; /* rounds until a block begins */
    uint3 first; /* block of the cluster */
    int order[EMU_THREADS_MAX];
    void (*body)(void *);
    void *argument;
    struct emu_grid grid;
    uint64_t seed, random;
    bool seeded;
} run = {.threads = 0,
         .live = 0,
         .current = -1,
         .size = 0,
         .ranks = 1,
         .live_of = {},
         .late = {},
         .first = {},
         .order = {},
         .body = nullptr,
         .argument = nullptr,
         .grid = {},
         .seed = 0,
         .random = 1,
         .seeded = false};
static char joined; /* race object: everything before and after a block */

void emu_set_seed(uint64_t seed)
{
    run.seed = seed;
    run.random = 0x9E3779B97F4A7C15u * (seed + 1);
    run.seeded = true;
}

void scheduler_seed_from_environment()
{
    const char *text = getenv("EMU_SEED");
    if (!run.seeded)
        emu_set_seed(text ? strtoull(text, nullptr, 0) : 0);
}

uint64_t emu_seed()
{
    return run.seed;
}

uint64_t emu_random()
{
    run.random ^= run.random << 13;
    run.random ^= run.random >> 7;
    run.random ^= run.random << 17;
    return run.random;
}

uint64_t emu_switches()
{
    return fiber_switches();
}

int block_threads()
{
    return run.threads;
}

int block_size()
{
    return run.size;
}

int block_ranks()
{
    return run.ranks;
}

int block_rank()
{
    return run.current < 0 ? 0 : emu_threads[run.current].rank;
}

bool block_runs(int rank)
{
    return run.live_of[rank] > 0;
}

int block_current()
{
    return run.current;
}

struct emu_thread *block_thread()
{
    return &emu_threads[run.current];
}

int emu_cluster_rank()
{
    return block_rank();
}

int emu_lane()
{
    return run.current & 31;
}

void emu_fail(struct emu_at at, const char *format, ...)
{
    va_list arguments;
    fprintf(stderr, "emulator: %s:%d: ", at.file ? at.file : "?", at.line);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    if (run.threads)
        fprintf(stderr, " [%s, block %u,%u,%u", run.grid.name, emu_block_index.x, emu_block_index.y,
                emu_block_index.z);
    if (run.current >= 0)
        fprintf(stderr, ", thread %u,%u,%u", emu_thread_index.x, emu_thread_index.y,
                emu_thread_index.z);
    fprintf(stderr, "%s, seed %llu]\n", run.threads ? "" : " [host", (unsigned long long)run.seed);
    fflush(stderr);
    _exit(EMU_EXIT);
}

void block_wait(const void *object, const char *waits_for, struct emu_at at)
{
    struct emu_thread *thread = block_thread();
    thread->state = THREAD_WAITS;
    thread->object = object;
    thread->waits_for = waits_for;
    thread->at = at;
    while (thread->state == THREAD_WAITS)
        fiber_yield(&thread->fiber, false);
}

void block_wake(const void *object, int first, int count)
{
    for (int i = first; i < first + count && i < run.threads; i++)
        if (emu_threads[i].state == THREAD_WAITS && emu_threads[i].object == object)
            emu_threads[i].state = THREAD_RUNS;
}

void emu_yield(struct emu_at at)
{
    struct emu_thread *thread = block_thread();
    thread->at = at;
    fiber_yield(&thread->fiber, false);
}

static void thread_main()
{
    race_acquire(&joined);
    run.body(run.argument);
    race_release(&joined);
    block_thread()->state = THREAD_DONE;
    run.live--;
    run.live_of[block_rank()]--;
    fiber_yield(&block_thread()->fiber, true);
}

static void resume(int i)
{
    const int rank = emu_threads[i].rank;
    run.current = i;
    emu_thread_index = emu_threads[i].index;
    emu_block_index = {run.first.x + (unsigned)rank, run.first.y, run.first.z};
    shared_select(rank);
    fiber_resume(&emu_threads[i].fiber);
    run.current = -1;
}

static void shuffle(int *order, int count)
{
    for (int i = count - 1; i > 0 && run.seed; i--) {
        int j = (int)(emu_random() % (uint64_t)(i + 1));
        int other = order[i];
        order[i] = order[j];
        order[j] = other;
    }
}

static void report_deadlock()
{
    fprintf(stderr,
            "emulator: DEADLOCK in %s (%s:%d), block %u,%u,%u: %d of %d threads wait, seed %llu\n",
            run.grid.name, run.grid.at.file, run.grid.at.line, emu_block_index.x, emu_block_index.y,
            emu_block_index.z, run.live, run.threads, (unsigned long long)run.seed);
    for (int i = 0; i < run.threads;) {
        const struct emu_thread *t = &emu_threads[i];
        int end = i + 1;
        while (end < run.threads && emu_threads[end].state == t->state &&
               emu_threads[end].at.line == t->at.line && emu_threads[end].at.file == t->at.file)
            end++;
        if (t->state == THREAD_WAITS)
            fprintf(stderr, "  threads %d..%d wait for %s at %s:%d\n", i, end - 1, t->waits_for,
                    t->at.file, t->at.line);
        else
            fprintf(stderr, "  threads %d..%d have returned\n", i, end - 1);
        i = end;
    }
    fflush(stderr);
    _exit(EMU_EXIT);
}

static void run_rounds()
{
    while (run.live > 0) {
        bool progress = false;
        shuffle(run.order, run.threads);
        for (int k = 0; k < run.threads; k++)
            if (emu_threads[run.order[k]].state == THREAD_RUNS) {
                if (run.late[emu_threads[run.order[k]].rank] == 0)
                    resume(run.order[k]);
                progress = true;
            }
        for (int &late : run.late)
            late -= late > 0;
        if (!tma_step() && !progress)
            report_deadlock();
    }
}

static void run_block()
{
    dim3 block = run.grid.block;
    shared_begin(run.grid.shared_bytes, device_shared_most(run.grid.kernel));
    barriers_begin();
    mbarriers_begin();
    tma_begin();
    cp_async_begin();
    wgmma_begin();
    run.live = run.threads;
    for (int rank = 0; rank < run.ranks; rank++) {
        run.live_of[rank] = run.size;
        run.late[rank] = run.ranks > 1 && run.seed ? (int)(emu_random() % 8) : 0;
    }
    for (int i = 0; i < run.threads; i++) {
        unsigned n = (unsigned)(i % run.size);
        emu_threads[i].index = {n % block.x, n / block.x % block.y, n / (block.x * block.y)};
        emu_threads[i].rank = i / run.size;
        emu_threads[i].state = THREAD_RUNS;
        emu_threads[i].at = run.grid.at;
        fiber_start(&emu_threads[i].fiber, thread_main);
    }
    race_release(&joined);
    run_rounds();
    barriers_end(run.grid.at);
    wgmma_end(run.grid.at);
    tma_end(run.grid.at);
    cp_async_end(run.grid.at);
    mbarriers_end(run.grid.at);
    race_acquire(&joined);
}

/* Blocks in ascending order for seed 0, else from a random one on with a random stride: the order
 * of blocks is nobody's to rely on. */
static void run_blocks(dim3 grid)
{
    unsigned ranks = (unsigned)run.ranks, across = grid.x / ranks;
    uint64_t count = (uint64_t)across * grid.y * grid.z, first = 0, stride = 1;
    if (run.seed) {
        first = emu_random() % count;
        stride = emu_random() % count + 1;
        uint64_t a = count, b = stride;
        while (b) { /* strides that share a factor with the count would miss blocks */
            uint64_t rest = a % b;
            a = b;
            b = rest;
        }
        if (a != 1)
            stride = count > 1 ? count - 1 : 1;
    }
    for (uint64_t i = 0, at = first; i < count; i++, at = (at + stride) % count) {
        run.first = {(unsigned)(at % across) * ranks, (unsigned)(at / across % grid.y),
                     (unsigned)(at / ((uint64_t)across * grid.y))};
        emu_block_index = run.first;
        run_block();
    }
}

void emu_run_grid(const struct emu_grid *grid, void (*body)(void *), void *argument)
{
    scheduler_seed_from_environment();
    uint64_t threads = (uint64_t)grid->block.x * grid->block.y * grid->block.z;
    if (threads == 0 || threads > EMU_THREADS_MAX || grid->block.z > 64)
        emu_fail(grid->at, "launch of %s: %ux%ux%u threads per block, at most %d", grid->name,
                 grid->block.x, grid->block.y, grid->block.z, EMU_THREADS_MAX);
    if (grid->grid.x == 0 || grid->grid.y == 0 || grid->grid.z == 0 || grid->grid.y > 65535 ||
        grid->grid.z > 65535)
        emu_fail(grid->at, "launch of %s: a grid of %ux%ux%u blocks", grid->name, grid->grid.x,
                 grid->grid.y, grid->grid.z);
    if (grid->shared_bytes > EMU_SHARED_MAX)
        emu_fail(grid->at, "launch of %s: %zu bytes of shared memory, at most %d", grid->name,
                 grid->shared_bytes, EMU_SHARED_MAX);
    if (grid->shared_bytes > device_shared_allowed(grid->kernel))
        emu_fail(grid->at, "launch of %s: %zu bytes of shared memory without ALLOW_SMEM",
                 grid->name, grid->shared_bytes);
    const int ranks = grid->cluster > 1 ? grid->cluster : 1;
    if (ranks > EMU_CLUSTER_MAX || grid->grid.x % (unsigned)ranks ||
        threads * ranks > EMU_THREADS_MAX || (ranks > 1 && threads % 32))
        emu_fail(grid->at,
                 "launch of %s: clusters of %d blocks of %d threads in a grid of %u: the model has "
                 "whole warps, at most %d blocks and %d threads, and the grid whole clusters",
                 grid->name, ranks, (int)threads, grid->grid.x, EMU_CLUSTER_MAX, EMU_THREADS_MAX);
    run.size = (int)threads;
    run.ranks = ranks;
    run.threads = run.size * ranks;
    run.body = body;
    run.argument = argument;
    run.grid = *grid;
    emu_block_dim = grid->block;
    emu_grid_dim = grid->grid;
    for (int i = 0; i < run.threads; i++)
        run.order[i] = i;
    run_blocks(grid->grid);
    run.threads = 0;
}
