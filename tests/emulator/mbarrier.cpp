#include "emulator/block.h"

enum { MBARRIERS_MAX = 256 };

/* The 8 bytes of an mbarrier; the device's own layout is opaque too. magic tells it from garbage.
 */
struct mbarrier {
    uint16_t pending, expected;
    int32_t tx : 24;
    uint32_t parity : 1, fenced : 1, magic : 6;
};
static_assert(sizeof(struct mbarrier) == 8, "an mbarrier is 8 bytes of shared memory");
enum { MAGIC = 0x2a, TX_MAX = (1 << 20) - 1 };

static uint64_t *known[MBARRIERS_MAX];
static int known_count;

void mbarriers_begin()
{
    known_count = 0;
}

void mbarriers_end(struct emu_at kernel)
{
    for (int i = 0; i < known_count; i++) {
        const struct mbarrier *b = (const struct mbarrier *)known[i];
        if (b->magic == MAGIC && b->tx != 0)
            emu_fail(kernel, "block ends: mbarrier at %u has unbalanced tx-count %d",
                     (uint32_t)((uint8_t *)known[i] - emu_shared) % SHARED_STRIDE, b->tx);
    }
}

static struct mbarrier *mbarrier_get(uint64_t *bar, const char *what, struct emu_at at)
{
    shared_range(bar, 8, 8, what, at);
    struct mbarrier *b = (struct mbarrier *)bar;
    if (b->magic != MAGIC || b->expected == 0)
        emu_fail(at, "%s: mbarrier used before mbarrier_init (or overwritten)", what);
    return b;
}

void emu_mbarrier_init(uint64_t *bar, uint32_t arrivals, struct emu_at at)
{
    shared_range(bar, 8, 8, "mbarrier_init", at);
    if (arrivals == 0 || arrivals > TX_MAX >> 4)
        emu_fail(at, "mbarrier_init: %u arrivals", arrivals);
    bool seen = false;
    for (int i = 0; i < known_count; i++)
        seen = seen || known[i] == bar;
    if (!seen && known_count < MBARRIERS_MAX)
        known[known_count++] = bar;
    struct mbarrier *b = (struct mbarrier *)bar;
    race_write(bar, 8); /* whoever uses it must be ordered after this */
    b->pending = b->expected = (uint16_t)arrivals;
    b->tx = 0;
    b->parity = 0;
    b->fenced = 0;
    b->magic = MAGIC;
}

void emu_mbarrier_fence_init()
{
    for (int i = 0; i < known_count; i++)
        if ((uint8_t *)known[i] >= emu_shared && (uint8_t *)known[i] < emu_shared + SHARED_STRIDE)
            ((struct mbarrier *)known[i])->fenced = 1;
}

void mbarrier_check_async(uint64_t *bar, struct emu_at at)
{
    if (!mbarrier_get(bar, "TMA load", at)->fenced)
        emu_fail(
            at,
            "TMA load on an mbarrier whose mbarrier_init was not followed by fence_mbarrier_init");
    race_read(bar, 8);
}

static const void *phase_object(uint64_t *bar, uint32_t parity)
{
    return (const char *)bar + (parity & 1);
}

static void mbarrier_complete(uint64_t *bar, struct mbarrier *b)
{
    if (b->pending != 0 || b->tx != 0)
        return;
    b->parity ^= 1;
    b->pending = b->expected;
    block_wake(bar, 0, block_threads());
}

void emu_mbarrier_arrive(uint64_t *bar, uint32_t bytes, struct emu_at at)
{
    struct mbarrier *b = mbarrier_get(bar, "mbarrier_arrive", at);
    race_read(bar, 8);
    if (b->pending == 0)
        emu_fail(at, "mbarrier over-arrival: all %u arrivals of this phase have come", b->expected);
    if (bytes > TX_MAX || b->tx + (int)bytes > TX_MAX)
        emu_fail(at, "mbarrier tx-count over %d bytes", TX_MAX);
    race_release(phase_object(bar, b->parity));
    b->tx += (int)bytes;
    b->pending--;
    mbarrier_complete(bar, b);
}

/* NOTE: on hardware memory of a block that has returned belongs to another; to one that has not
 * begun, too. The barrier's init and the arrival are ordered by cluster_sync alone. */
void emu_mbarrier_arrive_at(uint64_t *bar, int rank, struct emu_at at)
{
    if (rank < 0 || rank >= block_ranks())
        emu_fail(at, "mbarrier_arrive_at: block %d of a cluster of %d", rank, block_ranks());
    if (!block_runs(rank))
        emu_fail(at, "mbarrier_arrive_at: block %d of the cluster has returned", rank);
    shared_range(bar, 8, 8, "mbarrier_arrive_at", at);
    shared_select(rank);
    emu_mbarrier_arrive(
        (uint64_t *)((uint8_t *)bar + (rank - block_rank()) * (ptrdiff_t)SHARED_STRIDE), 0, at);
    shared_select(block_rank());
}

void mbarrier_complete_tx(uint64_t *bar, uint32_t bytes)
{
    struct mbarrier *b = (struct mbarrier *)bar;
    race_release(phase_object(bar, b->parity));
    b->tx -= (int)bytes;
    mbarrier_complete(bar, b);
}

bool emu_mbarrier_test(uint64_t *bar, uint32_t parity, struct emu_at at)
{
    emu_yield(at); /* tests stand in loops */
    struct mbarrier *b = mbarrier_get(bar, "mbarrier_test", at);
    race_read(bar, 8);
    if (b->parity == (parity & 1))
        return false;
    race_acquire(phase_object(bar, parity));
    return true;
}

void emu_mbarrier_wait(uint64_t *bar, uint32_t parity, struct emu_at at)
{
    race_read(bar, 8);
    while (mbarrier_get(bar, "mbarrier_wait", at)->parity == (parity & 1))
        block_wait(bar, "an mbarrier phase", at);
    race_acquire(phase_object(bar, parity));
}
