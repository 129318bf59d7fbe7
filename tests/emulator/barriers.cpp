#include "emulator/block.h"

#include <stdio.h>

enum {
    BARRIERS = 16,
    COLLECTIVES = 8,
    WARPS = EMU_THREADS_MAX / 32,
    WARPGROUPS = EMU_THREADS_MAX / 128
};

/* Race objects and results alternate by generation: a thread still on its way out of one generation
 * must not see what arrives for the next, else every write-after-read race would be hidden. */
struct barrier {
    int arrived, count;
    unsigned generation;
    int sum[2];
    char race[2];
    struct emu_at at; /* of the first arrival */
};
struct collective {
    unsigned mask, arrived, left; /* left: lanes that have not picked up the result; 0: free */
    enum emu_warp_kind kind;
    struct emu_at at; /* of the first arrival */
    uint64_t slot[32];
    bool complete;
};
struct meeting {
    int arrived;
    const char *kind;
    int argument;
    struct emu_at at;
};

static struct barrier barriers[EMU_CLUSTER_MAX][BARRIERS], cluster;
static struct collective collectives[WARPS][COLLECTIVES];
static struct meeting meetings[WARPGROUPS];

void barriers_begin()
{
    for (struct barrier(&block)[BARRIERS] : barriers)
        for (struct barrier &b : block)
            b.arrived = b.sum[0] = b.sum[1] = 0;
    cluster.arrived = 0;
    for (struct collective(&warp)[COLLECTIVES] : collectives)
        for (struct collective &c : warp)
            c.left = 0;
    for (struct meeting &m : meetings)
        m.arrived = 0;
}

void barriers_end(struct emu_at)
{
    for (int rank = 0; rank < block_ranks(); rank++)
        for (int id = 0; id < BARRIERS; id++) {
            const struct barrier *b = &barriers[rank][id];
            if (b->arrived)
                emu_fail(b->at, "barrier %d: %d of %d threads arrived and nobody completed it", id,
                         b->arrived, b->count);
        }
}

static struct barrier *barrier_arrive(int id, int count, int value, struct emu_at at)
{
    if (id < 0 || id >= BARRIERS)
        emu_fail(at, "barrier %d: there are %d", id, BARRIERS);
    if (count == 0)
        count = block_size();
    else if (count % 32 || count > block_size())
        emu_fail(at,
                 "barrier %d of %d threads in a block of %d: a multiple of 32 that the block has",
                 id, count, block_size());
    struct barrier *b = &barriers[block_rank()][id];
    if (b->arrived == 0) {
        b->count = count;
        b->at = at;
        b->sum[b->generation & 1] = 0;
    } else if (b->count != count) {
        emu_fail(at, "barrier %d: %d threads here, %d at %s:%d", id, count, b->count, b->at.file,
                 b->at.line);
    }
    race_release(&b->race[b->generation & 1]);
    b->sum[b->generation & 1] += value;
    if (++b->arrived == count) {
        b->arrived = 0;
        b->generation++;
        block_wake(b, 0, block_threads());
    }
    return b;
}

void emu_barrier(int id, int count, int value, int *votes, struct emu_at at)
{
    unsigned generation = id >= 0 && id < BARRIERS ? barriers[block_rank()][id].generation : 0;
    struct barrier *b = barrier_arrive(id, count, value, at);
    if (b->generation == generation)
        block_wait(b, id ? "a named barrier" : "__syncthreads", at);
    race_acquire(&b->race[generation & 1]);
    if (votes)
        *votes = b->sum[generation & 1];
}

void emu_barrier_arrive(int id, int count, struct emu_at at)
{
    barrier_arrive(id, count, 0, at);
}

void emu_cluster_sync(struct emu_at at)
{
    const unsigned generation = cluster.generation;
    race_release(&cluster.race[generation & 1]);
    if (++cluster.arrived == block_threads()) {
        cluster.arrived = 0;
        cluster.generation++;
        block_wake(&cluster, 0, block_threads());
    } else {
        block_wait(&cluster, "cluster_sync", at);
    }
    race_acquire(&cluster.race[generation & 1]);
}

static const char *kind_name(enum emu_warp_kind kind)
{
    static const char *const names[] = {
        "?", "shuffle", "vote", "match", "reduce", "__syncwarp", "matrix instruction", "elect"};
    return names[kind];
}

/* The collective this lane joins: an open one of the same lanes, else a free entry. */
static struct collective *collective_find(int warp, unsigned mask, enum emu_warp_kind kind,
                                          struct emu_at at)
{
    unsigned lane = 1u << emu_lane();
    struct collective *unused = nullptr;
    for (struct collective &c : collectives[warp]) {
        if (c.left == 0) {
            unused = &c;
        } else if (!c.complete && c.mask & lane) {
            if (c.mask != mask || c.kind != kind)
                emu_fail(
                    at,
                    "divergent warp collective: %s of lanes %08x here, %s of lanes %08x at %s:%d",
                    kind_name(kind), mask, kind_name(c.kind), c.mask, c.at.file, c.at.line);
            return &c;
        } else if (!c.complete && c.mask & mask) {
            emu_fail(at, "overlapping warp collectives: lanes %08x here, lanes %08x at %s:%d", mask,
                     c.mask, c.at.file, c.at.line);
        }
    }
    if (!unused)
        emu_fail(at, "more than %d warp collectives in flight in one warp", COLLECTIVES);
    unused->mask = unused->left = mask;
    unused->arrived = 0;
    unused->kind = kind;
    unused->complete = false;
    unused->at = at;
    return unused;
}

static const uint64_t *warp_meet(unsigned mask, enum emu_warp_kind kind, uint64_t value,
                                 bool orders, void (*run)(const uint64_t *slots), struct emu_at at)
{
    int warp = block_current() / 32, lane = emu_lane();
    if (!(mask >> lane & 1))
        emu_fail(at, "%s: lane %d is not in its own mask %08x", kind_name(kind), lane, mask);
    struct collective *c = collective_find(warp, mask, kind, at);
    c->arrived |= 1u << lane;
    c->slot[lane] = value;
    if (orders)
        race_release(c);
    if (c->arrived == mask) {
        c->complete = true;
        if (run)
            run(c->slot);
        block_wake(c, 32 * warp, 32);
    } else {
        block_wait(c, kind_name(kind), at);
    }
    if (orders)
        race_acquire(c);
    c->left &= ~(1u << lane);
    return c->slot;
}

const uint64_t *emu_warp(unsigned mask, enum emu_warp_kind kind, uint64_t value, bool orders,
                         struct emu_at at)
{
    return warp_meet(mask, kind, value, orders, nullptr, at);
}

void warp_run(uint64_t value, void (*run)(const uint64_t *slots), struct emu_at at)
{
    warp_meet(0xffffffffu, EMU_MATRIX, value, false, run, at);
}

void warpgroup_meet(const char *kind, void (*run)(int first_thread, int argument), int argument,
                    struct emu_at at)
{
    int group = block_current() / 128;
    struct meeting *m = &meetings[group];
    if (128 * (group + 1) > block_threads() || (block_ranks() > 1 && block_size() % 128))
        emu_fail(at, "%s: the block has no whole warpgroup %d", kind, group);
    if (m->arrived == 0) {
        m->kind = kind;
        m->argument = argument;
        m->at = at;
    } else if (m->kind != kind || m->argument != argument) {
        emu_fail(at, "divergent warpgroup: %s %d here, %s %d at %s:%d", kind, argument, m->kind,
                 m->argument, m->at.file, m->at.line);
    }
    if (++m->arrived == 128) {
        m->arrived = 0;
        if (run)
            run(128 * group, argument);
        block_wake(m, 128 * group, 128);
    } else {
        block_wait(m, kind, at);
    }
}
