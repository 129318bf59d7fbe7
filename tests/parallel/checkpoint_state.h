/* checkpoint_state: a made-up state of several dtypes, divided over the ranks in several ways, for
 * tests of checkpoints. */
#ifndef TESTS_PARALLEL_CHECKPOINT_STATE_H
#define TESTS_PARALLEL_CHECKPOINT_STATE_H

#include "checkpoints/checkpoint.h"

#include <unistd.h>

#include "kernels/base/io.h"
#include "parallel/ranks.h"

enum { TENSORS = 7, MOST_SLICES = 8 * TENSORS, MOST_PATH = 512 };

/* "wide" spans more than one block of the manifest. */
static const struct checkpoint_slice whole[TENSORS] = {
    {.name = "embed.weight", .dtype = DTYPE_BF16, .ndim = 2, .shape = {7, 129}},
    {.name = "layers.0.norm", .dtype = DTYPE_F32, .ndim = 1, .shape = {101}},
    {.name = "moment1/layers.0.norm", .dtype = DTYPE_F32, .ndim = 1, .shape = {101}},
    {.name = "one", .dtype = DTYPE_F32, .ndim = 1, .shape = {1}},
    {.name = "half", .dtype = DTYPE_F16, .ndim = 2, .shape = {9, 31}},
    {.name = "codes", .dtype = DTYPE_E4M3, .ndim = 2, .shape = {3, 257}},
    {.name = "wide", .dtype = DTYPE_F32, .ndim = 2, .shape = {5, 300001}},
};

/* COLUMNS: those of matrices over the ranks, as a division of tensors' columns has it; CUT: each
 * rank's in two slices that begin and end within rows. LAYOUTS itself stands for all of it on every
 * rank: for loading only. */
enum layout { EVEN, REVERSED, ROUND_ROBIN, FIRST_ONLY, COLUMNS, CUT, LAYOUTS };

static inline int64_t elements(int tensor)
{
    return whole[tensor].shape[0] * (whole[tensor].ndim == 2 ? whole[tensor].shape[1] : 1);
}

/* What [*first, *first + *count) of a tensor `rank` of `size` has. */
static inline void share(enum layout layout, int rank, int size, int tensor, int64_t *first,
                         int64_t *count)
{
    const int64_t all = elements(tensor);
    const int at = layout == REVERSED ? size - 1 - rank : rank;
    const int owner = layout == ROUND_ROBIN ? tensor % size : 0;
    if (layout != ROUND_ROBIN && layout != FIRST_ONLY) {
        *first = all * at / size;
        *count = all * (at + 1) / size - *first;
    } else {
        *first = 0;
        *count = rank == owner ? all : 0;
    }
}

/* A state of `version`: the slices of one rank, with memory. */
struct state {
    struct checkpoint_slice slice[MOST_SLICES];
    int64_t count;
};

static inline uint32_t bits_of(int version, int tensor, int64_t element)
{
    return (uint32_t)(element * 2654435761 + tensor * 40503 + version * 97); /* NaNs among them */
}

static inline void fill(struct state *state, int version)
{
    for (int64_t i = 0; i < state->count; i++) {
        const struct checkpoint_slice *slice = &state->slice[i];
        int tensor = 0;
        while (strcmp(whole[tensor].name, slice->name) != 0) {
            tensor++;
        }
        for (int64_t e = 0; e < slice->count; e++) {
            const int64_t at = slice->run > 0 ? e / slice->run * slice->stride + e % slice->run : e;
            const uint32_t bits = bits_of(version, tensor, slice->first + at);
            if (slice->dtype == DTYPE_F32) {
                ((uint32_t *)slice->data)[e] = bits;
            } else if (dtype_bytes(slice->dtype) == 2) {
                ((uint16_t *)slice->data)[e] = (uint16_t)bits;
            } else {
                ((uint8_t *)slice->data)[e] = (uint8_t)bits;
            }
        }
    }
}

static inline void add_slice(struct comm *world, struct state *state, int tensor, int64_t first,
                             int64_t count)
{
    if (count > 0) {
        CHECK(world, state->count < MOST_SLICES);
        struct checkpoint_slice *slice = &state->slice[state->count++];
        *slice = whole[tensor];
        slice->first = first;
        slice->count = count;
        slice->data = ranks_memory(world, (size_t)count * dtype_bytes(slice->dtype));
    }
}

/* Elements [first, last) of columns [column, column + columns) of a matrix, counted in these. */
static inline void add_columns(struct comm *world, struct state *state, int tensor, int64_t column,
                               int64_t columns, int64_t first, int64_t last)
{
    const int64_t width = whole[tensor].shape[1];
    while (first < last) {
        const int64_t rest = columns - first % columns, rows = (last - first) / columns;
        const bool runs = rest == columns && rows > 1;
        const int64_t count = runs ? rows * columns : rest < last - first ? rest : last - first;
        add_slice(world, state, tensor, first / columns * width + column + first % columns, count);
        state->slice[state->count - 1].run = runs ? columns : 0;
        state->slice[state->count - 1].stride = runs ? width : 0;
        first += count;
    }
}

/* One part of the columns more than there are ranks, the first of which has two: strides at any
 * number of ranks. */
static inline void add_parts(struct comm *world, struct state *state, int tensor, bool cut)
{
    const int64_t width = whole[tensor].shape[1], rows = whole[tensor].shape[0];
    const int parts = world->size + 1;
    for (int p = world->rank; p < parts; p += world->size) {
        const int64_t column = width * p / parts, columns = width * (p + 1) / parts - column;
        const int64_t all = rows * columns, middle = cut ? all / 3 + 1 : all;
        add_columns(world, state, tensor, column, columns, 0, middle);
        add_columns(world, state, tensor, column, columns, middle, all);
    }
}

static inline void make_state(struct comm *world, struct state *state, enum layout layout,
                              int version)
{
    state->count = 0;
    for (int t = 0; t < TENSORS; t++) {
        int64_t first = 0, count = elements(t);
        if ((layout == COLUMNS || layout == CUT) && whole[t].ndim == 2) {
            add_parts(world, state, t, layout == CUT);
            continue;
        }
        if (layout != LAYOUTS) {
            share(layout, world->rank, world->size, t, &first, &count);
        }
        add_slice(world, state, t, first, count);
    }
    fill(state, version);
}

static inline void free_state(struct state *state)
{
    for (int64_t i = 0; i < state->count; i++) {
        free(state->slice[i].data);
    }
    state->count = 0;
}

/* A fresh folder, the same on all ranks; in memory, where a sync costs nothing, if it can be. */
static inline void make_root(struct comm *world, char root[MOST_PATH])
{
    if (world->rank == 0) {
        snprintf(root, MOST_PATH, "%s/switchyard-test-XXXXXX",
                 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
        CHECK(world, mkdtemp(root) != NULL);
    }
    comm_broadcast(world, root, MOST_PATH, 0);
}

static inline void drop_root(struct comm *world, const char *root)
{
    comm_barrier(world);
    if (world->rank == 0) {
        CHECK_EQUAL(world, io_remove_tree(root), STATUS_OK);
    }
    comm_barrier(world);
}

static inline enum status save(struct comm *world, const char *root, int64_t step,
                               enum layout layout, int version, int keep)
{
    struct state state;
    char text[64];
    const struct checkpoint_options options = {.keep_last = keep};
    make_state(world, &state, layout, version);
    snprintf(text, sizeof text, "{\"version\": %d}", version);
    const enum status status =
        checkpoint_save(world, root, step, text, state.slice, state.count, &options);
    free_state(&state);
    return status;
}

/* Loads `path` into `got`; what loads is `expected`, byte for byte. */
static inline enum status load_and_compare(struct comm *world, const char *path, struct state *got,
                                           const struct state *expected)
{
    const enum status status = checkpoint_load(world, path, got->slice, got->count);
    for (int64_t i = 0; i < got->count && status == STATUS_OK; i++) {
        CHECK(world, memcmp(got->slice[i].data, expected->slice[i].data,
                            (size_t)got->slice[i].count * dtype_bytes(got->slice[i].dtype)) == 0);
    }
    return status;
}

/* Loads into memory of other contents and compares all of it. */
static inline enum status load(struct comm *world, const char *path, enum layout layout,
                               int version)
{
    struct state got, expected;
    make_state(world, &got, layout, version + 1000);
    make_state(world, &expected, layout, version);
    const enum status status = load_and_compare(world, path, &got, &expected);
    free_state(&got);
    free_state(&expected);
    return status;
}

static inline const char *step_path(const char *root, int64_t step)
{
    static char path[2 * MOST_PATH];
    snprintf(path, sizeof path, "%s/%08lld", root, (long long)step);
    return path;
}

#endif
