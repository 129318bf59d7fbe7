#include "emulator/block.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { STATICS_MAX = 64, GAP_BYTES = 32 };
static uint8_t *memory; /* [EMU_CLUSTER_MAX], then as many of the async view */

uint8_t *emu_shared, *emu_shared_async;
static struct {
    const void *key;
    size_t offset, bytes;
} statics[STATICS_MAX];
static int static_count;
static size_t dynamic_bytes, static_bytes, top, allowed;
static size_t used[EMU_CLUSTER_MAX]; /* by earlier blocks: what is not NaN any more */
static bool fenced;

void shared_select(int rank)
{
    emu_shared = memory + (size_t)rank * SHARED_STRIDE;
    emu_shared_async = emu_shared + (size_t)EMU_CLUSTER_MAX * SHARED_STRIDE;
}

void shared_begin(size_t bytes, size_t most)
{
    if (!memory) {
        void *p = mmap(nullptr, (size_t)2 * EMU_CLUSTER_MAX * SHARED_STRIDE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) {
            perror("emulator: shared memory");
            exit(71);
        }
        memory = (uint8_t *)p;
        for (size_t &all : used)
            all = EMU_SHARED_MAX;
    }
    for (int rank = block_ranks() - 1; rank >= 0; rank--) {
        shared_select(rank);
        asan_unpoison(emu_shared, EMU_SHARED_MAX);
        /* All bits set is NaN in every float type and an absurd index: uninitialised reads are
         * loud. Only what earlier blocks used can be anything else. */
        fill_bytes(emu_shared, 0xff, used[rank]);
        fill_bytes(emu_shared_async, 0xff, used[rank]);
        asan_poison(emu_shared + bytes, EMU_SHARED_MAX - bytes);
        used[rank] = bytes;
    }
    dynamic_bytes = bytes;
    top = bytes;
    static_count = 0;
    static_bytes = 0;
    allowed = most;
    fenced = false;
}

void *emu_shared_dynamic()
{
    return emu_shared;
}

void *emu_shared_static(const void *key, size_t bytes, size_t align)
{
    for (int i = 0; i < static_count; i++)
        if (statics[i].key == key)
            return emu_shared + statics[i].offset;
    align = align < 16 ? 16 : align;
    size_t offset = (top + GAP_BYTES + align - 1) / align * align;
    if (offset + bytes > EMU_SHARED_MAX || static_count == STATICS_MAX)
        emu_fail(block_thread()->at, "shared memory of the block exceeds %d bytes", EMU_SHARED_MAX);
    statics[static_count++] = {key, offset, bytes};
    static_bytes += bytes;
    if (dynamic_bytes + static_bytes > allowed)
        emu_fail(block_thread()->at,
                 "%zu bytes of static shared memory and %zu of dynamic: more than 48 KiB without "
                 "ALLOW_SMEM",
                 static_bytes, dynamic_bytes);
    top = offset + bytes;
    for (int rank = 0; rank < block_ranks(); rank++) {
        asan_unpoison(memory + (size_t)rank * SHARED_STRIDE + offset, bytes);
        used[rank] = top;
    }
    return emu_shared + offset;
}

void shared_check(uint32_t address, size_t bytes, const char *what, struct emu_at at)
{
    if (address + bytes <= dynamic_bytes)
        return;
    for (int i = 0; i < static_count; i++)
        if (address >= statics[i].offset && address + bytes <= statics[i].offset + statics[i].bytes)
            return;
    emu_fail(at, "%s: shared memory [%u, %zu) is outside of what the block has (%zu dynamic bytes)",
             what, address, address + bytes, dynamic_bytes);
}

uint32_t shared_range(const void *p, size_t bytes, size_t align, const char *what, struct emu_at at)
{
    const uint8_t *q = (const uint8_t *)p;
    if (q < emu_shared || q >= emu_shared + EMU_SHARED_MAX)
        emu_fail(at, "%s: not an address of shared memory", what);
    uint32_t address = (uint32_t)(q - emu_shared);
    if (address % align)
        emu_fail(at, "%s: shared address %u is not a multiple of %zu", what, address, align);
    shared_check(address, bytes, what, at);
    return address;
}

uint32_t emu_shared_address(const void *p, struct emu_at at)
{
    return shared_range(p, 1, 1, "shared_address", at);
}

/* NOTE: a fence makes everybody's writes visible here, not only the calling thread's; a kernel
 * whose threads do not all fence is caught by the race check of TMA stores alone. */
void emu_fence_proxy_async()
{
    fenced = true;
    race_release(emu_shared_async);
}

void shared_sync_async_view()
{
    for (int rank = 0; rank < block_ranks() && fenced; rank++) {
        uint8_t *from = memory + (size_t)rank * SHARED_STRIDE;
        copy_bytes(from + (size_t)EMU_CLUSTER_MAX * SHARED_STRIDE, from, top);
    }
    fenced = false;
}
