#include "emulator/block.h"
#include "emulator/tensor_map.h"

#include <cuda.h>
#include <cuda_bf16.h>

enum { COPIES_MAX = 256, STORE_BYTES = 64 << 10, GROUPS = 64 };

/* One bulk copy in flight: a load, or a store that first reads shared memory, later writes global.
 */
struct copy {
    bool store, add, staged; /* staged: shared memory has been read */
    struct tensor_map map;   /* a 1-D copy is a map of one row of bytes */
    uint8_t *shared;
    uint64_t *bar;
    int x, y, delay;
    int rank;          /* of the block in its cluster whose shared memory it is */
    int thread, group; /* of stores: who waits for it */
    struct emu_at at;
    int buffer; /* of stores: index of the staging buffer */
};
static struct copy copies[COPIES_MAX];
static int copy_count;
static uint8_t buffers[COPIES_MAX / 4][STORE_BYTES];
static bool buffer_used[COPIES_MAX / 4];
static int committed[EMU_THREADS_MAX];

/* Loads and stores are logical threads of their own. The load engine is ordered after the thread
 * that issued the copy; the store engine only after fence_proxy_async, as the async proxy does not
 * see generic writes without it, and after loads (same proxy). */
static void *load_engine, *store_engine, *issuer;
static char block_begins, load_issued, loads_done, block_ends;

void tma_begin()
{
    copy_count = 0;
    for (int i = 0; i < block_threads(); i++)
        committed[i] = 0;
    race_release(&block_begins);
    if (RACE_CHECKED) {
        issuer = race_current();
        race_switch(&store_engine);
        race_acquire(&block_begins);
        race_switch(&issuer);
    }
}

void tma_end(struct emu_at kernel)
{
    if (copy_count)
        emu_fail(copies[0].at,
                 "block ends with %d bulk copies in flight (kernel launched at %s:%d)", copy_count,
                 kernel.file, kernel.line);
    if (RACE_CHECKED) {
        issuer = race_current();
        race_switch(&load_engine);
        race_release(&block_ends);
        race_switch(&store_engine);
        race_release(&block_ends);
        race_switch(&issuer);
        race_acquire(&block_ends);
    }
}

static uint32_t swizzled(uint32_t address, uint32_t swizzle)
{
    switch (swizzle) {
    case CU_TENSOR_MAP_SWIZZLE_128B:
        return address ^ (address >> 7 & 7) << 4;
    case CU_TENSOR_MAP_SWIZZLE_64B:
        return address ^ (address >> 7 & 3) << 4;
    case CU_TENSOR_MAP_SWIZZLE_32B:
        return address ^ (address >> 7 & 1) << 4;
    default:
        return address;
    }
}

static uint32_t box_bytes(const struct tensor_map *m)
{
    return m->box[0] * m->box[1] * m->element_bytes;
}

/* The global bytes of 16 bytes of the box: their address, and which of them exist. */
static uint8_t *global_chunk(const struct copy *c, uint32_t row, uint32_t byte, int *from, int *to)
{
    const struct tensor_map *m = &c->map;
    int64_t y = (int64_t)c->y + row, x = (int64_t)c->x * m->element_bytes + byte;
    int64_t width = (int64_t)(m->dim[0] * m->element_bytes);
    bool inside = y >= 0 && y < (int64_t)m->dim[1];
    *from = inside ? (int)(x < 0 ? -x : 0) : 16;
    *to = inside ? (int)(x + 16 > width ? width - x : 16) : 16;
    *from = *from > 16 ? 16 : *from;
    *to = *to < *from ? *from : *to;
    return (uint8_t *)(uintptr_t)(m->base + (uint64_t)(y * (int64_t)m->row_bytes + x));
}

static void load_run(const struct copy *c)
{
    if (!block_runs(c->rank))
        emu_fail(c->at, "multicast into block %d of the cluster, which has returned", c->rank);
    uint32_t row_bytes = c->map.box[0] * c->map.element_bytes;
    uint32_t base = (uint32_t)(c->shared - emu_shared);
    for (uint32_t row = 0; row < c->map.box[1]; row++)
        for (uint32_t byte = 0; byte < row_bytes; byte += 16) {
            int from, to;
            uint8_t chunk[16] = {};
            uint8_t *global = global_chunk(c, row, byte, &from, &to);
            if (to > from) {
                race_read(global + from, (size_t)(to - from));
                copy_bytes(chunk + from, global + from, (size_t)(to - from));
            }
            uint32_t address = swizzled(base + row * row_bytes + byte, c->map.swizzle);
            copy_bytes(emu_shared + address, chunk, 16);
            copy_bytes(emu_shared_async + address, chunk, 16);
        }
    race_write(c->shared, box_bytes(&c->map));
    mbarrier_complete_tx(c->bar, box_bytes(&c->map));
    race_release(&loads_done);
}

static void store_stage(struct copy *c)
{
    shared_sync_async_view();
    copy_bytes(buffers[c->buffer], emu_shared_async + (c->shared - emu_shared), box_bytes(&c->map));
    race_read(c->shared, box_bytes(&c->map));
    c->staged = true;
}

static void add_elements(uint8_t *global, const uint8_t *from, int bytes, const struct copy *c)
{
    if (c->map.type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32) {
        for (int i = 0; i < bytes / 4; i++)
            ((float *)global)[i] += ((const float *)from)[i];
    } else if (c->map.type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16) {
        for (int i = 0; i < bytes / 2; i++) {
            float sum = __bfloat162float(((const __nv_bfloat16 *)from)[i]) +
                        __bfloat162float(((__nv_bfloat16 *)global)[i]);
            ((__nv_bfloat16 *)global)[i] = __float2bfloat16_rn(sum);
        }
    } else {
        emu_fail(c->at, "tma_reduce_add_2d: modelled for float and bf16 only");
    }
}

static void store_run(const struct copy *c)
{
    uint32_t row_bytes = c->map.box[0] * c->map.element_bytes;
    uint32_t base = (uint32_t)(c->shared - emu_shared);
    for (uint32_t row = 0; row < c->map.box[1]; row++)
        for (uint32_t byte = 0; byte < row_bytes; byte += 16) {
            int from, to;
            uint8_t *global = global_chunk(c, row, byte, &from, &to);
            uint32_t address = swizzled(base + row * row_bytes + byte, c->map.swizzle) - base;
            if (to <= from)
                continue;
            if (c->add)
                add_elements(global + from, buffers[c->buffer] + address + from, to - from, c);
            else
                copy_bytes(global + from, buffers[c->buffer] + address + from, (size_t)(to - from));
            race_write(global + from, (size_t)(to - from));
        }
    buffer_used[c->buffer] = false;
}

/* Stores of a thread are waited for on its entry of `committed`; reads and writes apart. */
static const void *store_object(int thread, bool read_only)
{
    return (const char *)&committed[thread] + read_only;
}

static bool copy_step(struct copy *c)
{
    shared_select(c->rank);
    race_switch(c->store ? &store_engine : &load_engine);
    bool done = !c->store || c->staged;
    if (!c->store)
        load_run(c);
    else if (!c->staged)
        store_stage(c);
    else
        store_run(c);
    if (c->store) {
        race_release(store_object(c->thread, !done));
        block_wake(&committed[c->thread], c->thread, 1);
    }
    c->delay = emu_seed() ? (int)(emu_random() % 4) : 0;
    race_switch(&issuer);
    return done;
}

bool tma_step()
{
    bool any = copy_count > 0;
    if (RACE_CHECKED)
        issuer = race_current();
    for (int i = 0; i < copy_count;) {
        struct copy *c = &copies[i];
        if (c->delay-- > 0 || !copy_step(c)) {
            i++;
            continue;
        }
        copy_count--;
        for (int j = i; j < copy_count; j++) /* order kept: seed 0 is first in, first out */
            copy_bytes(&copies[j], &copies[j + 1], sizeof copies[j]);
    }
    return any;
}

const struct emu_at *tma_load_at(uint32_t address)
{
    for (int i = 0; i < copy_count && !RACE_CHECKED; i++) { /* it says more */
        uint32_t first = (uint32_t)(copies[i].shared - emu_shared);
        if (!copies[i].store && copies[i].rank == block_rank() && address >= first &&
            address < first + box_bytes(&copies[i].map))
            return &copies[i].at;
    }
    return nullptr;
}

/* ---- issue ---- */

static struct copy *copy_new(bool store, void *shared, const struct tensor_map *map, int x, int y,
                             const char *what, struct emu_at at)
{
    size_t align = map->swizzle == CU_TENSOR_MAP_SWIZZLE_128B  ? 1024
                   : map->swizzle == CU_TENSOR_MAP_SWIZZLE_64B ? 512
                   : map->swizzle == CU_TENSOR_MAP_SWIZZLE_32B ? 256
                                                               : 128;
    if (map->box[1] == 1 && map->dim[1] == 1 && map->swizzle == 0)
        align = 16;
    shared_range(shared, box_bytes(map), align, what, at);
    if (copy_count == COPIES_MAX)
        emu_fail(at, "%s: more than %d bulk copies in flight", what, COPIES_MAX);
    struct copy *c = &copies[copy_count++];
    c->store = store;
    c->add = c->staged = false;
    c->map = *map;
    c->shared = (uint8_t *)shared;
    c->bar = nullptr;
    c->x = x;
    c->y = y;
    c->at = at;
    c->rank = block_rank();
    c->thread = block_current();
    c->group = committed[c->thread];
    c->delay = emu_seed() ? (int)(emu_random() % 4) : 0;
    return c;
}

static struct tensor_map byte_row(const void *global, uint32_t bytes, const char *what,
                                  struct emu_at at)
{
    if (bytes == 0 || bytes % 16 || (uintptr_t)global % 16)
        emu_fail(at, "%s: %u bytes at %p; size and address must be multiples of 16", what, bytes,
                 global);
    struct tensor_map map = {};
    map.base = (uint64_t)(uintptr_t)global;
    map.dim[0] = map.row_bytes = bytes;
    map.dim[1] = map.box[1] = map.element_bytes = 1;
    map.box[0] = bytes;
    map.rank = 1;
    return map;
}

static const struct tensor_map *map_get(const void *map, uint32_t rank, const char *what,
                                        struct emu_at at)
{
    const struct tensor_map *m = (const struct tensor_map *)map;
    if ((uintptr_t)map % 64 || m->magic != TENSOR_MAP_MAGIC)
        emu_fail(at,
                 "%s: not a tensor map that cuTensorMapEncodeTiled wrote, or not 64-byte aligned",
                 what);
    if (m->rank != rank)
        emu_fail(at, "%s: the map has %u dimensions", what, m->rank);
    return m;
}

/* To the block `rank` of the cluster, whose shared memory is selected: shared and bar are there. */
static void load_to(int rank, void *shared, const struct tensor_map *map, uint64_t *bar, int x,
                    int y, const char *what, struct emu_at at)
{
    mbarrier_check_async(bar, at);
    struct copy *c = copy_new(false, shared, map, x, y, what, at);
    c->rank = rank;
    const struct emu_at *reader =
        wgmma_reading(rank, (uint32_t)(c->shared - emu_shared), box_bytes(map));
    if (reader)
        emu_fail(at, "%s overwrites an operand of the wgmma at %s:%d, which is in flight", what,
                 reader->file, reader->line);
    c->bar = bar;
    fill_bytes(shared, 0xff, box_bytes(map)); /* undefined until the barrier says so */
}

/* To the blocks of `mask`, each at the same place. */
static void load_issue(void *shared, const struct tensor_map *map, uint64_t *bar, int x, int y,
                       uint32_t mask, const char *what, struct emu_at at)
{
    for (int rank = 0; rank < block_ranks(); rank++) {
        const ptrdiff_t away = (rank - block_rank()) * (ptrdiff_t)SHARED_STRIDE;
        if (mask >> rank & 1) {
            if (!block_runs(rank))
                emu_fail(at, "%s: block %d of the cluster has returned", what, rank);
            shared_select(rank);
            load_to(rank, (uint8_t *)shared + away, map, (uint64_t *)((uint8_t *)bar + away), x, y,
                    what, at);
        }
    }
    shared_select(block_rank());
    if (RACE_CHECKED) {
        race_release(&load_issued);
        issuer = race_current();
        race_switch(&load_engine);
        race_acquire(&load_issued);
        race_switch(&issuer);
    }
}

static void store_issue(void *shared, const struct tensor_map *map, int x, int y, bool add,
                        const char *what, struct emu_at at)
{
    struct copy *c = copy_new(true, shared, map, x, y, what, at);
    c->add = add;
    c->buffer = 0;
    while (c->buffer < COPIES_MAX / 4 && buffer_used[c->buffer])
        c->buffer++;
    if (c->buffer == COPIES_MAX / 4 || box_bytes(map) > STORE_BYTES)
        emu_fail(at, "%s: the model holds %d stores of at most %d bytes", what, COPIES_MAX / 4,
                 STORE_BYTES);
    buffer_used[c->buffer] = true;
    if (RACE_CHECKED) {
        issuer = race_current();
        race_switch(&store_engine);
        race_acquire(emu_shared_async); /* what fence_proxy_async released */
        race_acquire(&loads_done);
        race_switch(&issuer);
    }
}

static uint32_t own_block()
{
    return 1U << block_rank();
}

void emu_tma_load(void *shared, const void *global, uint32_t bytes, uint64_t *bar, struct emu_at at)
{
    struct tensor_map map = byte_row(global, bytes, "tma_load_1d", at);
    load_issue(shared, &map, bar, 0, 0, own_block(), "tma_load_1d", at);
}

void emu_tma_load_box(void *shared, const void *map, uint64_t *bar, int x, int y, struct emu_at at)
{
    load_issue(shared, map_get(map, 2, "tma_load_2d", at), bar, x, y, own_block(), "tma_load_2d",
               at);
}

void emu_tma_load_multicast(void *shared, const void *map, uint64_t *bar, int x, int y,
                            uint32_t mask, struct emu_at at)
{
    const char *what = "tma_load_2d_multicast";
    if (mask == 0 || mask >> block_ranks() != 0)
        emu_fail(at, "%s: mask %x in a cluster of %d blocks", what, mask, block_ranks());
    load_issue(shared, map_get(map, 2, what, at), bar, x, y, mask, what, at);
}

void emu_tma_load_plane(void *shared, const void *map, uint64_t *bar, int x, int y, int z,
                        struct emu_at at)
{
    struct tensor_map plane = *map_get(map, 3, "tma_load_3d", at);
    if (z >= 0 && (uint64_t)z < plane.planes)
        plane.base += (uint64_t)z * plane.plane_bytes;
    else
        plane.dim[1] = 0; /* zeros */
    load_issue(shared, &plane, bar, x, y, own_block(), "tma_load_3d", at);
}

void emu_tma_store(void *global, const void *shared, uint32_t bytes, struct emu_at at)
{
    struct tensor_map map = byte_row(global, bytes, "tma_store_1d", at);
    store_issue((void *)shared, &map, 0, 0, false, "tma_store_1d", at);
}

void emu_tma_store_box(const void *map, const void *shared, int x, int y, bool add,
                       struct emu_at at)
{
    const char *what = add ? "tma_reduce_add_2d" : "tma_store_2d";
    store_issue((void *)shared, map_get(map, 2, what, at), x, y, add, what, at);
}

void emu_tma_store_commit()
{
    committed[block_current()]++;
}

static bool stores_pending(int thread, int newest_allowed, bool read_only)
{
    for (int i = 0; i < copy_count; i++)
        if (copies[i].store && copies[i].thread == thread && !(read_only && copies[i].staged) &&
            copies[i].group < committed[thread] - newest_allowed)
            return true;
    return false;
}

void emu_tma_store_wait(int pending, bool read_only, struct emu_at at)
{
    int thread = block_current();
    while (stores_pending(thread, pending, read_only))
        block_wait(&committed[thread], "its TMA stores", at);
    race_acquire(store_object(thread, true));
    if (!read_only)
        race_acquire(store_object(thread, false));
}
