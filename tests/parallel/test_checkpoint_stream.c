/* checkpoint: streamed out of callbacks instead of memory, and read back piece by piece. */
#define _GNU_SOURCE
#include "parallel/checkpoint_state.h"

#include "checkpoints/manifest.h"

/* Bytes of a slice from memory, as a callback. */
static enum status give(const struct checkpoint_slice *slice, int64_t offset, void *to,
                        size_t bytes)
{
    int64_t *next = slice->context;
    memcpy(to, (const char *)slice->data + offset, bytes);
    if (*next != offset) {
        return status_fail(STATUS_INTERNAL, "block at %lld, expected %lld", (long long)offset,
                           (long long)*next);
    }
    *next += (int64_t)bytes;
    return STATUS_OK;
}

/* Streamed instead of held in memory, to a folder of its own, read back piece by piece. */
static void stream(struct comm *world, enum layout layout)
{
    char root[MOST_PATH], place[2 * MOST_PATH], *again = NULL;
    struct state state, expected;
    int64_t next[MOST_SLICES] = {0}, step = 0;
    make_root(world, root);
    snprintf(place, sizeof place, "%s/one/", root);
    make_state(world, &state, layout, 6);
    for (int64_t i = 0; i < state.count; i++) {
        state.slice[i].read = give;
        state.slice[i].context = &next[i];
    }
    CHECK_EQUAL(world, checkpoint_write(world, place, 0, "{}", state.slice, state.count),
                STATUS_OK);
    for (int64_t i = 0; i < state.count; i++) { /* each byte once */
        CHECK_EQUAL(world, next[i],
                    state.slice[i].count * (int64_t)dtype_bytes(state.slice[i].dtype));
    }
    CHECK_EQUAL(world, load(world, place, REVERSED, 6), STATUS_OK);
    CHECK_EQUAL(world, checkpoint_write(world, place, 0, "{}", state.slice, state.count),
                STATUS_USAGE);
    CHECK_EQUAL(world, checkpoint_newest(world, root, INT64_MAX, &again, &step, NULL, NULL),
                STATUS_OK);
    CHECK(world, again == NULL);
    struct checkpoint_reader *reader = NULL;
    CHECK_EQUAL(world, checkpoint_open(&reader, place), STATUS_OK);
    CHECK_EQUAL(world, checkpoint_contents(reader)->tensors, TENSORS);
    make_state(world, &expected, LAYOUTS, 6);
    for (int t = 0; t < TENSORS; t++) {
        const int64_t first = elements(t) / 3, count = elements(t) - first;
        const size_t width = dtype_bytes(whole[t].dtype);
        char *got = ranks_memory(world, (size_t)count * width);
        CHECK_EQUAL(world, checkpoint_read(reader, whole[t].name, first, count, got), STATUS_OK);
        CHECK(world, memcmp(got, (char *)expected.slice[t].data + (size_t)first * width,
                            (size_t)count * width) == 0);
        free(got);
    }
    CHECK_EQUAL(world, checkpoint_read(reader, "nothing", 0, 1, root), STATUS_MISMATCH);
    checkpoint_close(reader);
    checkpoint_close(NULL);
    free_state(&state);
    free_state(&expected);
    drop_root(world, root);
}

static void test_streams(struct comm *world)
{
    stream(world, EVEN);
    stream(world, CUT);
}

static enum status refuse(const struct checkpoint_slice *slice, int64_t offset, void *to,
                          size_t bytes)
{
    memset(to, 0, bytes);
    return offset == 0 ? STATUS_OK : status_fail(STATUS_DATA, "no more of %s", slice->name);
}

/* A source that fails in the middle fails the save on all ranks; nothing is left of it. */
static void test_source_fails(struct comm *world)
{
    char root[MOST_PATH], place[2 * MOST_PATH];
    struct state state;
    make_root(world, root);
    snprintf(place, sizeof place, "%s/one", root);
    make_state(world, &state, FIRST_ONLY, 6);
    for (int64_t i = 0; i < state.count; i++) {
        state.slice[i].read = refuse;
    }
    CHECK_EQUAL(world, checkpoint_write(world, place, 0, "{}", state.slice, state.count),
                STATUS_DATA);
    CHECK(world, strcmp(status_message(), "no more of wide") == 0);
    CHECK(world, !io_exists(place));
    free_state(&state);
    comm_barrier(world);
    CHECK(world, world->rank != 0 || rmdir(root) == 0);
}

/* A tensor of several blocks in parts in any order: forwards in small steps, backwards, back and
 * forth; small steps read each block once. */
static void test_parts_in_any_order(struct comm *world)
{
    enum { MANY = 7 * (1 << 20) + 123, STEP = 99991, JUMPS = 60 };
    char root[MOST_PATH], place[2 * MOST_PATH];
    struct checkpoint_reader *reader = NULL;
    uint32_t *all = ranks_memory(world, MANY * sizeof *all),
             *got = ranks_memory(world, MANY * sizeof *got);
    const struct checkpoint_slice slice = {
        .name = "long", .dtype = DTYPE_F32, .ndim = 1, .shape = {MANY}, .count = MANY, .data = all};
    make_root(world, root);
    snprintf(place, sizeof place, "%s/one", root);
    for (int64_t i = 0; i < MANY; i++) {
        all[i] = (uint32_t)i * 2654435761u;
    }
    CHECK_EQUAL(world, checkpoint_write(world, place, 0, "{}", &slice, world->rank == 0),
                STATUS_OK);
    CHECK_EQUAL(world, checkpoint_open(&reader, place), STATUS_OK);
    io_fault_arm_reads(IO_FAULT_NONE, 0, false);
    for (int64_t at = 0; at < MANY; at += STEP) {
        const int64_t count = MANY - at < STEP ? MANY - at : STEP;
        CHECK_EQUAL(world, checkpoint_read(reader, "long", at, count, got + at), STATUS_OK);
    }
    CHECK(world, memcmp(all, got, MANY * sizeof *all) == 0);
    CHECK_EQUAL(world, io_reads(), 1 + (MANY * 4 + 65536) / MANIFEST_BLOCK_BYTES + 1);
    for (int64_t i = 0; i < JUMPS; i++) {
        const int64_t at = i < JUMPS / 2 ? MANY - (i + 1) * (MANY / JUMPS) * 2 + 120
                                         : i * 7919 * 7919 % (MANY - STEP);
        CHECK_EQUAL(world, checkpoint_read(reader, "long", at, STEP, got), STATUS_OK);
        CHECK(world, memcmp(all + at, got, STEP * sizeof *all) == 0);
    }
    checkpoint_close(reader);
    free(all);
    free(got);
    drop_root(world, root);
}

/* A matrix whose columns lie in a file per rank, row by row in small steps: each block is read
 * once, not anew for each turn of its file. */
static void test_columns_in_order(struct comm *world)
{
    enum { ROWS = 2000, COLUMNS_EACH = 1000, SOME = 99991 };
    const int64_t width = (int64_t)COLUMNS_EACH * world->size, all = ROWS * width;
    char root[MOST_PATH], place[2 * MOST_PATH];
    struct checkpoint_reader *reader = NULL;
    uint32_t *own = ranks_memory(world, (size_t)ROWS * COLUMNS_EACH * sizeof *own),
             *got = ranks_memory(world, SOME * sizeof *got);
    const struct checkpoint_slice slice = {.name = "matrix",
                                           .dtype = DTYPE_F32,
                                           .ndim = 2,
                                           .shape = {ROWS, width},
                                           .first = (int64_t)COLUMNS_EACH * world->rank,
                                           .count = (int64_t)ROWS * COLUMNS_EACH,
                                           .run = world->size > 1 ? COLUMNS_EACH : 0,
                                           .stride = world->size > 1 ? width : 0,
                                           .data = own};
    make_root(world, root);
    snprintf(place, sizeof place, "%s/one", root);
    for (int64_t i = 0; i < slice.count; i++) {
        const int64_t at = slice.first + i / COLUMNS_EACH * width + i % COLUMNS_EACH;
        own[i] = (uint32_t)at * 2654435761u;
    }
    CHECK_EQUAL(world, checkpoint_write(world, place, 0, "{}", &slice, 1), STATUS_OK);
    CHECK_EQUAL(world, checkpoint_open(&reader, place), STATUS_OK);
    io_fault_arm_reads(IO_FAULT_NONE, 0, false);
    for (int64_t at = 0; at < all; at += SOME) {
        const int64_t count = all - at < SOME ? all - at : SOME;
        int64_t wrong = 0;
        CHECK_EQUAL(world, checkpoint_read(reader, "matrix", at, count, got), STATUS_OK);
        for (int64_t i = 0; i < count; i++) {
            wrong += got[i] != (uint32_t)(at + i) * 2654435761u;
        }
        CHECK_EQUAL(world, wrong, 0);
    }
    const int64_t blocks = (slice.count * 4 + 65536) / MANIFEST_BLOCK_BYTES + 1;
    CHECK(world, io_reads() <= world->size * (1 + blocks));
    checkpoint_close(reader);
    free(own);
    free(got);
    drop_root(world, root);
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_streams),
        RANKS_TEST(test_source_fails),
        RANKS_TEST(test_parts_in_any_order),
        RANKS_TEST(test_columns_in_order),
    };
    return RANKS_MAIN(tests);
}
