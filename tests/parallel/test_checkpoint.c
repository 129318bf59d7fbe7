/* checkpoint: saved by any layout, read by any other, bit for bit; damage is found and named. */
#define _GNU_SOURCE
#include "parallel/checkpoint_state.h"

#include <dirent.h>
#include <hdf5.h>

#include "kernels/base/rng.h"

/* --- values --- */

static void test_every_layout_to_every_other(struct comm *world)
{
    char root[MOST_PATH];
    make_root(world, root);
    for (int from = 0; from < LAYOUTS; from++) {
        CHECK_EQUAL(world, save(world, root, from + 1, (enum layout)from, from, 9), STATUS_OK);
        for (int to = 0; to <= LAYOUTS; to++) {
            CHECK_EQUAL(world, load(world, step_path(root, from + 1), (enum layout)to, from),
                        STATUS_OK);
        }
        char *text = NULL, expected[64];
        snprintf(expected, sizeof expected, "{\"version\": %d}", from);
        CHECK_EQUAL(world, checkpoint_state(step_path(root, from + 1), &text), STATUS_OK);
        CHECK(world, strcmp(text, expected) == 0);
        free(text);
    }
    drop_root(world, root);
}

/* Any range of any tensor, several of one tensor, none at all. */
static void test_odd_ranges(struct comm *world)
{
    char root[MOST_PATH];
    make_root(world, root);
    CHECK_EQUAL(world, save(world, root, 7, EVEN, 3, 1), STATUS_OK);
    for (uint64_t i = 0; i < 40; i++) {
        struct state got = {.count = 0}, expected = {.count = 0};
        const int slices = (int)(i + (uint64_t)world->rank) % TENSORS;
        for (int s = 0; s < slices; s++) {
            uint32_t bits[4];
            rng_bits((uint64_t)world->rank * 1000 + i, (uint64_t)s, bits);
            const int tensor = (int)(bits[0] % TENSORS);
            const int64_t first = bits[1] % elements(tensor),
                          count = 1 + bits[2] % (elements(tensor) - first);
            add_slice(world, &got, tensor, first, count);
            add_slice(world, &expected, tensor, first, count);
        }
        fill(&expected, 3);
        CHECK_EQUAL(world, checkpoint_load(world, step_path(root, 7), got.slice, got.count),
                    STATUS_OK);
        for (int64_t s = 0; s < got.count; s++) {
            CHECK(world, memcmp(got.slice[s].data, expected.slice[s].data,
                                (size_t)got.slice[s].count * dtype_bytes(got.slice[s].dtype)) == 0);
        }
        free_state(&got);
        free_state(&expected);
    }
    drop_root(world, root);
}

/* model.h5 shows every tensor whole, in its shape, from any folder. */
static void test_view(struct comm *world)
{
    char root[MOST_PATH], path[4 * MOST_PATH];
    make_root(world, root);
    for (int layout = 0; layout < LAYOUTS; layout++) {
        CHECK_EQUAL(world, save(world, root, layout + 1, (enum layout)layout, 4, 9), STATUS_OK);
        snprintf(path, sizeof path, "%s/model.h5", step_path(root, layout + 1));
        struct state got, expected;
        make_state(world, &got, LAYOUTS, 5);
        make_state(world, &expected, LAYOUTS, 4);
        const hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
        CHECK(world, file >= 0);
        for (int t = 0; t < TENSORS; t++) {
            hsize_t dims[4] = {0};
            const hid_t set = H5Dopen2(file, whole[t].name, H5P_DEFAULT), type = H5Dget_type(set),
                        space = H5Dget_space(set);
            CHECK_EQUAL(world, H5Sget_simple_extent_dims(space, dims, NULL), whole[t].ndim);
            CHECK_EQUAL(world, dims[0], whole[t].shape[0]);
            CHECK(world, whole[t].ndim == 1 || (int64_t)dims[1] == whole[t].shape[1]);
            CHECK_EQUAL(world, H5Tget_size(type), dtype_bytes(whole[t].dtype));
            CHECK(world, H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, got.slice[t].data) >= 0);
            CHECK(world, memcmp(got.slice[t].data, expected.slice[t].data,
                                (size_t)elements(t) * dtype_bytes(whole[t].dtype)) == 0);
            H5Sclose(space);
            H5Tclose(type);
            H5Dclose(set);
        }
        H5Fclose(file);
        free_state(&got);
        free_state(&expected);
        comm_barrier(world);
    }
    drop_root(world, root);
}

static void compare_files(struct comm *world, const char *a, const char *b)
{
    char *x = NULL, *y = NULL;
    size_t x_bytes = 0, y_bytes = 0;
    CHECK_EQUAL(world, io_read_file(a, &x, &x_bytes, (size_t)1 << 30), STATUS_OK);
    CHECK_EQUAL(world, io_read_file(b, &y, &y_bytes, (size_t)1 << 30), STATUS_OK);
    CHECK_EQUAL(world, x_bytes, y_bytes);
    CHECK(world, memcmp(x, y, x_bytes) == 0);
    free(x);
    free(y);
}

/* So that checkpoints can be compared with cmp: no time stamps, names or addresses inside. */
static void test_same_state_same_files(struct comm *world)
{
    char root[MOST_PATH], one[MOST_PATH + 64], two[MOST_PATH + 64], a[4 * MOST_PATH],
        b[4 * MOST_PATH];
    make_root(world, root);
    snprintf(one, sizeof one, "%s/one", root);
    snprintf(two, sizeof two, "%s/a/longer/name", root);
    CHECK_EQUAL(world, save(world, one, 5, EVEN, 1, 1), STATUS_OK);
    if (world->rank == 0) {
        sleep(1); /* HDF5's time stamps have seconds */
    }
    CHECK_EQUAL(world, save(world, two, 5, EVEN, 1, 1), STATUS_OK);
    int files = 0;
    DIR *dir = world->rank == 0 ? opendir(step_path(one, 5)) : NULL;
    for (struct dirent *entry = dir != NULL ? readdir(dir) : NULL; entry != NULL;
         entry = readdir(dir)) {
        if (entry->d_name[0] != '.') {
            snprintf(a, sizeof a, "%s/%s", step_path(one, 5), entry->d_name);
            snprintf(b, sizeof b, "%s/%s", step_path(two, 5), entry->d_name);
            compare_files(world, a, b);
            files++;
        }
    }
    if (dir != NULL) {
        CHECK_EQUAL(world, files, world->size + 3); /* shards, manifest, state, view */
        closedir(dir);
    }
    drop_root(world, root);
}

/* --- errors --- */

struct warnings {
    int count;
    char last[2048];
};

static void warn(void *context, const char *message)
{
    struct warnings *warnings = context;
    warnings->count++;
    snprintf(warnings->last, sizeof warnings->last, "%s", message);
}

enum damage { FLIP_PAYLOAD, CUT_SHARD, NO_SHARD, NO_MANIFEST, EDIT_MANIFEST, CUT_STATE, DAMAGES };

static void edit(struct comm *world, const char *path, const char *file, enum damage damage)
{
    char name[4 * MOST_PATH];
    struct io_file f;
    int64_t bytes = 0;
    char byte = 0;
    snprintf(name, sizeof name, "%s/%s", path, file);
    if (damage == NO_SHARD || damage == NO_MANIFEST) {
        CHECK_EQUAL(world, io_remove(name), STATUS_OK);
        return;
    }
    CHECK_EQUAL(world, io_open_write(&f, name), STATUS_OK);
    CHECK_EQUAL(world, io_size(&f, &bytes), STATUS_OK);
    if (damage == FLIP_PAYLOAD || damage == EDIT_MANIFEST) { /* the largest tensor lies there */
        CHECK_EQUAL(world, io_pread(&f, &byte, 1, bytes / 2), STATUS_OK);
        byte ^= 1;
        CHECK_EQUAL(world, io_pwrite(&f, &byte, 1, bytes / 2), STATUS_OK);
    } else {
        CHECK_EQUAL(world, io_truncate(&f, bytes / 2), STATUS_OK);
    }
    CHECK_EQUAL(world, io_close(&f), STATUS_OK);
}

static void test_damage_is_found(struct comm *world)
{
    static const struct {
        const char *file;
        bool seen;                     /* without reading the payload */
        enum status status;            /* of loading it */
        const char *warning, *message; /* parts */
    } cases[DAMAGES] = {
        [FLIP_PAYLOAD] = {"shard-00000.h5", false, STATUS_DATA, "", "damaged in block"},
        [CUT_SHARD] = {"shard-00000.h5", true, STATUS_DATA, "the manifest says", "truncated"},
        [NO_SHARD] = {"shard-00000.h5", true, STATUS_DATA, "missing", "missing"},
        [NO_MANIFEST] = {"manifest.json", true, STATUS_DATA, "no manifest", "no manifest"},
        [EDIT_MANIFEST] = {"manifest.json", true, STATUS_DATA, "hash", "damaged manifest"},
        [CUT_STATE] = {"state.json", true, STATUS_OK, "the manifest says", ""},
    };
    for (int d = 0; d < DAMAGES; d++) {
        char root[MOST_PATH], *path = NULL, *text = NULL;
        struct warnings warnings = {0};
        int64_t step = 0;
        make_root(world, root);
        CHECK_EQUAL(world, save(world, root, 10, EVEN, 1, 5), STATUS_OK);
        CHECK_EQUAL(world, save(world, root, 20, EVEN, 2, 5), STATUS_OK);
        if (world->rank == 0) {
            edit(world, step_path(root, 20), cases[d].file, (enum damage)d);
        }
        comm_barrier(world);
        CHECK_EQUAL(world, load(world, step_path(root, 20), EVEN, 2), cases[d].status);
        if (cases[d].status != STATUS_OK) {
            CHECK_MESSAGE(world, cases[d].file);
            CHECK_MESSAGE(world, cases[d].message);
            CHECK(world, d > NO_SHARD || strstr(status_message(), ", tensor ") != NULL);
        } else {
            CHECK_EQUAL(world, checkpoint_state(step_path(root, 20), &text), STATUS_DATA);
            CHECK_MESSAGE(world, cases[d].file);
        }
        CHECK_EQUAL(world, checkpoint_newest(world, root, INT64_MAX, &path, &step, warn, &warnings),
                    STATUS_OK);
        CHECK_EQUAL(world, step, cases[d].seen ? 10 : 20);
        CHECK_EQUAL(world, warnings.count, cases[d].seen && world->rank == 0);
        CHECK(world, warnings.count == 0 || strstr(warnings.last, cases[d].warning) != NULL);
        free(path);
        CHECK_EQUAL(world, checkpoint_newest(world, root, 20, &path, &step, warn, &warnings),
                    STATUS_OK);
        CHECK_EQUAL(world, step, 10);
        CHECK_EQUAL(world, load(world, path, REVERSED, 1), STATUS_OK);
        free(path);
        drop_root(world, root);
    }
}

static void test_none_and_none_usable(struct comm *world)
{
    char root[MOST_PATH], gone[MOST_PATH + 8], *path = NULL;
    int64_t step = 0;
    struct warnings warnings = {0};
    make_root(world, root);
    snprintf(gone, sizeof gone, "%s/gone", root);
    CHECK_EQUAL(world, checkpoint_newest(world, gone, INT64_MAX, &path, &step, warn, &warnings),
                STATUS_OK);
    CHECK(world, path == NULL);
    CHECK_EQUAL(world, checkpoint_newest(world, root, INT64_MAX, &path, &step, warn, &warnings),
                STATUS_OK);
    CHECK(world, path == NULL && warnings.count == 0);
    CHECK_EQUAL(world, load(world, gone, EVEN, 1), STATUS_DATA);
    CHECK_MESSAGE(world, "not a checkpoint");
    CHECK_EQUAL(world, save(world, root, 3, EVEN, 1, 5), STATUS_OK);
    if (world->rank == 0) {
        edit(world, step_path(root, 3), "manifest.json", EDIT_MANIFEST);
    }
    comm_barrier(world);
    CHECK_EQUAL(world, checkpoint_newest(world, root, INT64_MAX, &path, &step, warn, &warnings),
                STATUS_DATA);
    CHECK(world, path == NULL && warnings.count == (world->rank == 0));
    CHECK_MESSAGE(world, "1 checkpoints, none of them usable");
    drop_root(world, root);
}

static void test_another_model(struct comm *world)
{
    static const struct {
        struct checkpoint_slice slice;
        const char *parts[3];
    } cases[] = {
        {{.name = "wide", .dtype = DTYPE_F32, .ndim = 2, .shape = {6, 300001}},
         {"tensor wide is float32 [5, 300001], this model has float32 [6, 300001]"}},
        {{.name = "wide", .dtype = DTYPE_F32, .ndim = 1, .shape = {1500005}},
         {"tensor wide is float32 [5, 300001]", "float32 [1500005]"}},
        {{.name = "wide", .dtype = DTYPE_BF16, .ndim = 2, .shape = {5, 300001}},
         {"tensor wide is float32", "this model has bfloat16 [5, 300001]"}},
        {{.name = "narrow", .dtype = DTYPE_F32, .ndim = 1, .shape = {1}},
         {"tensor narrow is missing"}},
        {{.name = "", .dtype = DTYPE_F32, .ndim = 1, .shape = {1}}, {"is missing"}},
    };
    char root[MOST_PATH];
    uint32_t memory[1] = {5};
    make_root(world, root);
    CHECK_EQUAL(world, save(world, root, 3, EVEN, 1, 5), STATUS_OK);
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        struct checkpoint_slice slice = cases[c].slice;
        slice.count = 1;
        slice.data = memory;
        /* Only the last rank asks for it; all get the answer. */
        const int64_t count = world->rank == world->size - 1;
        CHECK_EQUAL(world, checkpoint_load(world, step_path(root, 3), &slice, count),
                    STATUS_MISMATCH);
        for (int p = 0; p < 3 && cases[c].parts[p] != NULL; p++) {
            CHECK_MESSAGE(world, cases[c].parts[p]);
        }
    }
    drop_root(world, root);
}

/* Elements that nobody or two offer: refused by name, nothing is left. */
static void test_gaps_and_overlaps(struct comm *world)
{
    const struct checkpoint_options options = {.keep_last = 1};
    char root[MOST_PATH], *path = NULL;
    int64_t step = 0;
    struct warnings warnings = {0};
    make_root(world, root);
    CHECK_EQUAL(world, save(world, root, 1, EVEN, 1, 1), STATUS_OK);
    for (int wrong = 0; wrong < 3; wrong++) {
        struct state state;
        make_state(world, &state, EVEN, 2);
        if (world->rank == world->size - 1) { /* it has the end of "wide" */
            struct checkpoint_slice *slice = &state.slice[state.count - 1];
            slice->count -= wrong == 0;
            slice->first += wrong != 1 ? 0 : world->size > 1 ? -1 : 1;
            slice->shape[0] += wrong == 2;
        }
        CHECK_EQUAL(world,
                    checkpoint_save(world, root, 2, "{}", state.slice, state.count, &options),
                    STATUS_INTERNAL);
        CHECK_MESSAGE(world, "tensor wide");
        free_state(&state);
    }
    CHECK_EQUAL(world, checkpoint_newest(world, root, INT64_MAX, &path, &step, warn, &warnings),
                STATUS_OK);
    CHECK_EQUAL(world, step, 1);
    CHECK_EQUAL(world, load(world, path, EVEN, 1), STATUS_OK);
    free(path);
    struct checkpoint_entry *entries = NULL;
    int64_t count = 0;
    CHECK_EQUAL(world, checkpoint_list(root, &entries, &count), STATUS_OK);
    CHECK_EQUAL(world, count, 1);
    checkpoint_list_free(entries, count);
    if (world->rank == 0) {
        char work[MOST_PATH + 64];
        snprintf(work, sizeof work, "%s/.tmp-00000002-%ld", root, (long)getpid());
        CHECK(world, !io_exists(work));
    }
    drop_root(world, root);
}

/* --- housekeeping --- */

static bool there(const char *root, const char *name)
{
    char path[MOST_PATH + 64];
    snprintf(path, sizeof path, "%s/%s", root, name);
    return io_exists(path);
}

static void test_keep_last(struct comm *world)
{
    char root[MOST_PATH], *text = NULL, name[MOST_PATH + 8];
    size_t bytes = 0;
    make_root(world, root);
    for (int64_t step = 98; step <= 102; step++) {
        CHECK_EQUAL(world, save(world, root, step, EVEN, (int)step, 2), STATUS_OK);
        CHECK(world, there(root, "00000098") == (step < 100));
        comm_barrier(world);
    }
    CHECK(world, !there(root, "00000100") && there(root, "00000101") && there(root, "00000102"));
    comm_barrier(world);
    /* Falling back and going on from an older step never removes newer ones. */
    CHECK_EQUAL(world, save(world, root, 50, EVEN, 50, 2), STATUS_OK);
    CHECK(world, there(root, "00000050") && there(root, "00000101") && there(root, "00000102"));
    snprintf(name, sizeof name, "%s/LATEST", root);
    CHECK_EQUAL(world, io_read_file(name, &text, &bytes, 100), STATUS_OK);
    CHECK(world, strcmp(text, "00000050\n") == 0);
    free(text);
    comm_barrier(world);
    CHECK_EQUAL(world, save(world, root, 102, REVERSED, 7, 1), STATUS_OK); /* the same step again */
    CHECK_EQUAL(world, load(world, step_path(root, 102), EVEN, 7), STATUS_OK);
    CHECK(world, !there(root, "00000101"));
    comm_barrier(world);
    CHECK_EQUAL(world, save(world, root, 123456789, EVEN, 8, 1), STATUS_OK); /* nine digits */
    CHECK_EQUAL(world, load(world, step_path(root, 123456789), EVEN, 8), STATUS_OK);
    drop_root(world, root);
}

static void test_clean(struct comm *world)
{
    static const char *const stale[] = {".tmp-00000009-1/deep", ".trash-00000001-5", ".tmp-x"},
                             *const kept[] = {"00000001", "other.tmp-1", ".hidden"};
    char root[MOST_PATH], path[MOST_PATH + 64];
    make_root(world, root);
    if (world->rank == 0) {
        for (int i = 0; i < 3; i++) {
            snprintf(path, sizeof path, "%s/%s", root, stale[i]);
            CHECK_EQUAL(world, io_make_dir(path), STATUS_OK);
            snprintf(path, sizeof path, "%s/%s/file", root, stale[i]);
            CHECK_EQUAL(world, io_write_file(path, "x", 1), STATUS_OK);
            snprintf(path, sizeof path, "%s/%s", root, kept[i]);
            CHECK_EQUAL(world, io_make_dir(path), STATUS_OK);
        }
        CHECK_EQUAL(world, checkpoint_clean(root), STATUS_OK);
        for (int i = 0; i < 3; i++) {
            CHECK(world, !there(root, stale[i]) && there(root, kept[i]));
        }
        CHECK(world, !there(root, ".tmp-00000009-1"));
        snprintf(path, sizeof path, "%s/gone", root);
        CHECK_EQUAL(world, checkpoint_clean(path), STATUS_OK);
    }
    drop_root(world, root);
}

static void test_list(struct comm *world)
{
    char root[MOST_PATH];
    struct checkpoint_entry *entries = NULL;
    int64_t count = 0;
    make_root(world, root);
    CHECK_EQUAL(world, save(world, root, 1, EVEN, 1, 5), STATUS_OK);
    CHECK_EQUAL(world, save(world, root, 2, EVEN, 1, 5), STATUS_OK);
    if (world->rank == 0) {
        edit(world, step_path(root, 1), "shard-00000.h5", CUT_SHARD);
        CHECK_EQUAL(world, checkpoint_list(root, &entries, &count), STATUS_OK);
        CHECK_EQUAL(world, count, 2);
        CHECK_EQUAL(world, entries[0].step, 2);
        CHECK(world, entries[0].valid && entries[0].why == NULL);
        CHECK_EQUAL(world, entries[0].tensors, TENSORS);
        CHECK_EQUAL(world, entries[0].ranks, world->size);
        CHECK(world, entries[0].bytes > 4 * elements(TENSORS - 1));
        CHECK_EQUAL(world, entries[1].step, 1);
        CHECK(world, !entries[1].valid && strstr(entries[1].why, "shard-00000.h5") != NULL);
        checkpoint_list_free(entries, count);
    }
    drop_root(world, root);
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_every_layout_to_every_other),
        RANKS_TEST(test_odd_ranges),
        RANKS_TEST(test_view),
        RANKS_TEST(test_same_state_same_files),
        RANKS_TEST(test_damage_is_found),
        RANKS_TEST(test_none_and_none_usable),
        RANKS_TEST(test_another_model),
        RANKS_TEST(test_gaps_and_overlaps),
        RANKS_TEST(test_keep_last),
        RANKS_TEST(test_clean),
        RANKS_TEST(test_list),
    };
    return RANKS_MAIN(tests);
}
