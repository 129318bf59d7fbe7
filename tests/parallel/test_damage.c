/* checkpoint: bits that flipped, files that were cut, lost, swapped or are of another checkpoint:
 * all found, never used, and the checkpoint before is there to fall back to.
 *
 * SWITCHYARD_FULL=1: 10,000 single flips on one rank (1,000 on more) and a tenth as many times 16;
 * SWITCHYARD_FLIPS=N: N and N / 10.
 */
#define _GNU_SOURCE
#include "parallel/checkpoint_state.h"

#include "checkpoints/manifest.h"
#include "checkpoints/verify.h"
#include "kernels/base/rng.h"

enum { OLD = 10, NEW = 20, MOST_FILES = 16, SOME = 50 };

static int64_t flip_count(const struct comm *world)
{
    const char *full = getenv("SWITCHYARD_FULL"), *count = getenv("SWITCHYARD_FLIPS");
    if (count != NULL) {
        return strtoll(count, NULL, 10);
    }
    return full == NULL || strcmp(full, "1") != 0 ? SOME : world->size == 1 ? 10000 : 1000;
}

/* Without the large tensor, so that thousands of trials take seconds. */
static void make_small(struct comm *world, struct state *state, enum layout layout, int version)
{
    make_state(world, state, layout, version);
    for (int64_t i = 0; i < state->count; i++) {
        if (strcmp(state->slice[i].name, "wide") == 0) {
            free(state->slice[i].data);
            state->slice[i] = state->slice[--state->count];
        }
    }
}

static void save_small(struct comm *world, const char *root, int64_t step)
{
    struct state state;
    const struct checkpoint_options options = {.keep_last = 5};
    make_small(world, &state, EVEN, (int)step);
    CHECK_EQUAL(
        world, checkpoint_save(world, root, step, "{\"a\": 1}", state.slice, state.count, &options),
        STATUS_OK);
    free_state(&state);
}

/* Loads on another layout; what was loaded is right, or nothing was. */
static enum status load_small(struct comm *world, const char *root, int64_t step)
{
    struct state got, expected;
    make_small(world, &got, REVERSED, 1000);
    make_small(world, &expected, REVERSED, (int)step);
    const enum status status = load_and_compare(world, step_path(root, step), &got, &expected);
    free_state(&got);
    free_state(&expected);
    return status;
}

static void count_line(void *context, const char *line)
{
    (void)line;
    ++*(int64_t *)context;
}

static void ignore(void *context, const char *message)
{
    (void)context;
    (void)message;
}

/* Collective. The damage is seen by whoever reads all; a load refuses it by name or does not meet
 * it; the other checkpoint loads. */
static void expect_found(struct comm *world, const char *root, const char *file)
{
    char *path = NULL;
    int64_t step = 0, lines = 0;
    comm_barrier(world);
    if (world->rank == 0) {
        struct verify_result result;
        const enum status status =
            verify_checkpoint(step_path(root, NEW), world->size == 1, &result, count_line, &lines);
        CHECK_EQUAL(world, status, STATUS_DATA);
        CHECK(world, result.problems > 0 && result.problems == lines);
    }
    const enum status status = load_small(world, root, NEW);
    CHECK(world, status == STATUS_OK || status == STATUS_DATA);
    if (status == STATUS_DATA) {
        CHECK_MESSAGE(world, file);
        CHECK(world,
              strncmp(file, "manifest", 8) == 0 || strstr(status_message(), ", tensor ") != NULL);
    }
    CHECK_EQUAL(world,
                checkpoint_newest(world, root, status == STATUS_OK ? INT64_MAX : NEW, &path, &step,
                                  ignore, NULL),
                STATUS_OK);
    CHECK(world, path != NULL && (step == OLD || status == STATUS_OK));
    free(path);
    CHECK_EQUAL(world, load_small(world, root, OLD), STATUS_OK);
}

/* The files of a checkpoint, its manifest first. */
struct files {
    char name[MOST_FILES][MANIFEST_NAME_BYTES];
    int64_t bytes[MOST_FILES];
    int count;
};

static void find_files(struct comm *world, const char *root, struct files *files)
{
    struct manifest manifest;
    CHECK_EQUAL(world, manifest_read(&manifest, step_path(root, NEW)), STATUS_OK);
    files->count = (int)manifest.files + 1;
    CHECK(world, files->count <= MOST_FILES);
    for (int i = 0; i < files->count; i++) {
        struct io_file file;
        char path[3 * MOST_PATH];
        snprintf(files->name[i], sizeof files->name[i], "%s",
                 i == 0 ? "manifest.json" : manifest.file[i - 1].name);
        snprintf(path, sizeof path, "%s/%s", step_path(root, NEW), files->name[i]);
        CHECK_EQUAL(world, io_open_read(&file, path), STATUS_OK);
        CHECK_EQUAL(world, io_size(&file, &files->bytes[i]), STATUS_OK);
        CHECK_EQUAL(world, io_close(&file), STATUS_OK);
    }
    manifest_free(&manifest);
    comm_barrier(world); /* before one of them is touched */
}

static void name_file(char path[3 * MOST_PATH], const char *root, int64_t step, const char *name)
{
    snprintf(path, 3 * MOST_PATH, "%s/%s", step_path(root, step), name);
}

/* Rank 0 flips bits; the same call again puts them back. */
static void flip(struct comm *world, const char *root, const struct files *files, int file,
                 uint64_t trial, int count)
{
    char path[3 * MOST_PATH];
    struct io_file open;
    if (world->rank != 0) {
        return;
    }
    name_file(path, root, NEW, files->name[file]);
    CHECK_EQUAL(world, io_open_write(&open, path), STATUS_OK);
    for (int i = 0; i < count; i++) {
        uint32_t bits[4];
        unsigned char byte = 0;
        rng_bits(trial, (uint64_t)i + 1, bits);
        const int64_t at =
            (int64_t)(((uint64_t)bits[0] << 32 | bits[1]) % (uint64_t)files->bytes[file]);
        CHECK_EQUAL(world, io_pread(&open, &byte, 1, at), STATUS_OK);
        byte = (unsigned char)(byte ^ (1 << bits[2] % 8));
        CHECK_EQUAL(world, io_pwrite(&open, &byte, 1, at), STATUS_OK);
    }
    CHECK_EQUAL(world, io_close(&open), STATUS_OK);
}

static void test_flips(struct comm *world)
{
    char root[MOST_PATH];
    struct files files;
    const int64_t single = flip_count(world), several = single / 10;
    make_root(world, root);
    save_small(world, root, OLD);
    save_small(world, root, NEW);
    find_files(world, root, &files);
    for (int64_t i = 0; i < single + several; i++) {
        uint32_t bits[4];
        rng_bits((uint64_t)i, 0, bits);
        const int file = (int)(bits[0] % (uint32_t)files.count), count = i < single ? 1 : 16;
        flip(world, root, &files, file, (uint64_t)i, count);
        expect_found(world, root, files.name[file]);
        comm_barrier(world);
        flip(world, root, &files, file, (uint64_t)i, count);
    }
    comm_barrier(world);
    CHECK_EQUAL(world, load_small(world, root, NEW), STATUS_OK); /* put back */
    if (world->rank == 0) {
        printf("flips of 1 bit: %lld tried, %lld found, 0 used; of 16 bits: %lld tried, %lld "
               "found, 0 used\n",
               (long long)single, (long long)single, (long long)several, (long long)several);
    }
    drop_root(world, root);
}

/* The file as it was: kept in memory while it is damaged. */
struct saved {
    char path[3 * MOST_PATH];
    char *data;
    size_t bytes;
};

static void keep(struct comm *world, struct saved *saved, const char *root, const char *name)
{
    if (world->rank == 0) {
        name_file(saved->path, root, NEW, name);
        CHECK_EQUAL(world, io_read_file(saved->path, &saved->data, &saved->bytes, (size_t)1 << 30),
                    STATUS_OK);
    }
}

static void put_back(struct comm *world, struct saved *saved)
{
    comm_barrier(world);
    if (world->rank == 0) {
        CHECK_EQUAL(world, io_write_file(saved->path, saved->data, saved->bytes), STATUS_OK);
        free(saved->data);
    }
    comm_barrier(world);
}

/* Writes the file without its end, or with zeros at its beginning. */
static void cut_file(struct comm *world, const struct saved *saved, int64_t at, bool zeros)
{
    char *part = ranks_memory(world, saved->bytes);
    memcpy(part, saved->data, saved->bytes);
    if (zeros) {
        memset(part, 0, saved->bytes < 4096 ? saved->bytes : 4096);
    }
    CHECK_EQUAL(world, io_write_file(saved->path, part, zeros ? saved->bytes : (size_t)at),
                STATUS_OK);
    free(part);
}

/* Every file cut at every 4 KiB (few of them without SWITCHYARD_FULL) and one byte before its end,
 * gone, or with 4 KiB of zeros. */
static void test_cuts_and_holes(struct comm *world)
{
    const int64_t stride = flip_count(world) > SOME ? 1 : 7;
    char root[MOST_PATH];
    struct files files;
    int64_t trials = 0;
    make_root(world, root);
    save_small(world, root, OLD);
    save_small(world, root, NEW);
    find_files(world, root, &files);
    for (int f = 0; f < files.count; f++) {
        const int64_t cuts = files.bytes[f] / 4096 + 2;
        for (int64_t cut = 0; cut <= cuts; cut += cut < cuts - 1 - stride ? stride : 1) {
            struct saved saved = {.data = NULL};
            keep(world, &saved, root, files.name[f]);
            if (world->rank == 0) {
                cut_file(world, &saved, cut < cuts - 1 ? cut * 4096 : files.bytes[f] - 1,
                         cut == cuts);
            }
            expect_found(world, root, files.name[f]);
            put_back(world, &saved);
            trials++;
        }
        struct saved saved = {.data = NULL};
        keep(world, &saved, root, files.name[f]);
        CHECK(world, world->rank != 0 || io_remove(saved.path) == STATUS_OK);
        expect_found(world, root, f == 0 ? "manifest" : files.name[f]);
        put_back(world, &saved);
        trials++;
    }
    if (world->rank == 0) {
        printf("cuts, holes and missing files: %lld tried, %lld found, 0 used\n", (long long)trials,
               (long long)trials);
    }
    drop_root(world, root);
}

/* A shard of another rank, or of the same rank in an older checkpoint. */
static void test_mixed_up_shards(struct comm *world)
{
    char root[MOST_PATH], name[64];
    int64_t trials = 0;
    make_root(world, root);
    save_small(world, root, OLD);
    save_small(world, root, NEW);
    for (int rank = 0; rank < world->size; rank++) {
        for (int other = 0; other <= world->size; other++) { /* the last: stale */
            struct saved saved = {.data = NULL};
            if (other == rank) {
                continue;
            }
            snprintf(name, sizeof name, "shard-%05d.h5", rank);
            keep(world, &saved, root, name);
            if (world->rank == 0) {
                char path[3 * MOST_PATH], from[64], *data = NULL;
                size_t bytes = 0;
                snprintf(from, sizeof from, "shard-%05d.h5", other < world->size ? other : rank);
                name_file(path, root, other < world->size ? NEW : OLD, from);
                CHECK_EQUAL(world, io_read_file(path, &data, &bytes, (size_t)1 << 30), STATUS_OK);
                CHECK_EQUAL(world, io_write_file(saved.path, data, bytes), STATUS_OK);
                free(data);
            }
            expect_found(world, root, name);
            put_back(world, &saved);
            trials++;
        }
    }
    if (world->rank == 0) {
        printf("shards of other ranks and older checkpoints: %lld tried, %lld found, 0 used\n",
               (long long)trials, (long long)trials);
    }
    drop_root(world, root);
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_flips),
        RANKS_TEST(test_cuts_and_holes),
        RANKS_TEST(test_mixed_up_shards),
    };
    return RANKS_MAIN(tests);
}
