#include "trainer/commands/bench_checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/manifest.h"
#include "kernels/base/io.h"
#include "kernels/base/json_out.h"
#include "trainer/optimizer.h"
#include "trainer/state.h"
#include "trainer/step.h"

enum { MAX_PATH = 4096, MOST_ROUNDS = 100, NAME_BYTES = 160 };

enum what { RAW_WRITE, SAVE, RAW_READ, LOAD, KINDS };
static const char *const names[KINDS] = {"raw_write", "save", "raw_read", "load"};

struct disk_bench {
    struct session *session;
    struct model model;
    char root[MAX_PATH], raw[MAX_PATH];
    char *block;                        /* owned: MANIFEST_BLOCK_BYTES, aligned */
    int64_t saved, loaded;              /* bytes of a checkpoint; of it read by a load */
    double seconds[KINDS][MOST_ROUNDS]; /* of the slowest rank */
};

/* --- plain files: what `dd oflag=direct conv=fsync` and `dd iflag=direct` do --- */

/* A rank's share of what is saved, in whole blocks. */
static int64_t own_bytes(const struct disk_bench *bench)
{
    return manifest_blocks(bench->saved / bench->session->world.size) * MANIFEST_BLOCK_BYTES;
}

static enum status move_blocks(const struct disk_bench *bench, struct io_file *file, bool write)
{
    const int64_t bytes = own_bytes(bench);
    for (int64_t at = 0; at < bytes; at += MANIFEST_BLOCK_BYTES) {
        const size_t size = (size_t)MANIFEST_BLOCK_BYTES;
        TRY(write ? io_pwrite(file, bench->block, size, at)
                  : io_pread(file, bench->block, size, at));
    }
    return write ? io_sync(file) : STATUS_OK;
}

static enum status raw_write(const struct disk_bench *bench)
{
    struct io_file file;
    TRY(io_create_direct(&file, bench->raw));
    const enum status status = move_blocks(bench, &file, true), closed = io_close(&file);
    return status == STATUS_OK ? closed : status;
}

static enum status raw_read(const struct disk_bench *bench)
{
    struct io_file file;
    TRY(io_open_read_direct(&file, bench->raw));
    const enum status status = move_blocks(bench, &file, false), closed = io_close(&file);
    return status == STATUS_OK ? closed : status;
}

/* --- rounds --- */

static enum status do_one(struct disk_bench *bench, enum what what, int64_t step)
{
    struct comm *world = &bench->session->world;
    struct progress_state at = {.step = step};
    char place[MAX_PATH + 32];
    snprintf(place, sizeof place, "%s/%08lld", bench->root, (long long)step);
    switch (what) {
    case RAW_WRITE:
        return comm_agree(world, raw_write(bench), NULL);
    case SAVE:
        return state_save(&bench->model, bench->root, &at, "none");
    case RAW_READ:
        return comm_agree(world, raw_read(bench), NULL);
    default:
        return state_load(&bench->model, place, &at);
    }
}

static enum status time_one(struct disk_bench *bench, enum what what, int64_t step, double *seconds)
{
    comm_barrier(&bench->session->world);
    const double started = step_clock();
    TRY(do_one(bench, what, step));
    *seconds = step_clock() - started;
    comm_all_reduce(&bench->session->world, seconds, 1, DTYPE_F64, REDUCE_MAX);
    return STATUS_OK;
}

/* Bytes of the checkpoint, and of the tensors that a load reads: not weights that have a master. */
static enum status weigh(struct disk_bench *bench)
{
    struct manifest manifest;
    char place[MAX_PATH + 32], master[NAME_BYTES];
    snprintf(place, sizeof place, "%s/%08d", bench->root, 1);
    TRY(manifest_read(&manifest, place));
    for (int64_t i = 0; i < manifest.files; i++) {
        bench->saved += manifest.file[i].bytes;
    }
    for (int64_t i = 0; i < manifest.tensors; i++) {
        const struct manifest_tensor *tensor = &manifest.tensor[i];
        snprintf(master, sizeof master, "master/%s", tensor->name);
        if (manifest_find(&manifest, master) == NULL) {
            bench->loaded += manifest_elements(tensor) * (int64_t)dtype_bytes(tensor->dtype);
        }
    }
    manifest_free(&manifest);
    return STATUS_OK;
}

static enum status run_rounds(struct disk_bench *bench, int64_t rounds)
{
    struct comm *world = &bench->session->world;
    double warm = 0;
    TRY(time_one(bench, SAVE, 1, &warm));
    TRY(comm_agree(world, weigh(bench), NULL));
    for (int64_t round = 0; round < rounds; round++) {
        for (int what = 0; what < KINDS; what++) {
            TRY(time_one(bench, (enum what)what, round + 2, &bench->seconds[what][round]));
        }
    }
    return STATUS_OK;
}

/* --- report --- */

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* GB/s of the median round. */
static double rate(struct disk_bench *bench, enum what what, int64_t rounds)
{
    const int64_t whole = own_bytes(bench) * bench->session->world.size;
    const int64_t bytes = what == SAVE ? bench->saved : what == LOAD ? bench->loaded : whole;
    qsort(bench->seconds[what], (size_t)rounds, sizeof bench->seconds[what][0], ascending);
    return (double)bytes / bench->seconds[what][rounds / 2] / 1e9;
}

static void print(struct disk_bench *bench, int64_t rounds, bool json)
{
    double rates[KINDS];
    for (int what = 0; what < KINDS; what++) {
        rates[what] = rate(bench, (enum what)what, rounds);
    }
    if (json) {
        printf("{\"bytes\":%lld,\"loaded_bytes\":%lld,\"ranks\":%d,\"rounds\":%lld",
               (long long)bench->saved, (long long)bench->loaded, bench->session->world.size,
               (long long)rounds);
        for (int what = 0; what < KINDS; what++) {
            char before[32];
            snprintf(before, sizeof before, ",\"%s_gb_per_s\":", names[what]);
            json_out_number(stdout, before, rates[what], 6);
        }
        printf("}\n");
        return;
    }
    printf("checkpoint of %.1f MiB on %d ranks, medians of %lld rounds\n",
           (double)bench->saved / 1048576.0, bench->session->world.size, (long long)rounds);
    printf("save  %8.3f s  %6.3f GB/s, read back and verified; plain file written %6.3f GB/s: "
           "%.0f %%\n",
           bench->seconds[SAVE][rounds / 2], rates[SAVE], rates[RAW_WRITE],
           100 * rates[SAVE] / rates[RAW_WRITE]);
    printf("load  %8.3f s  %6.3f GB/s, verified;               plain file read    %6.3f GB/s: "
           "%.0f %%\n",
           bench->seconds[LOAD][rounds / 2], rates[LOAD], rates[RAW_READ],
           100 * rates[LOAD] / rates[RAW_READ]);
}

/* --- */

static enum status open_bench(struct disk_bench *bench)
{
    struct session *session = bench->session;
    const struct config *config = &session->config;
    const int length = snprintf(bench->root, sizeof bench->root, "%s.bench", config->run.dir);
    const int raw = snprintf(bench->raw, sizeof bench->raw, "%.4000s/raw-%05d", bench->root,
                             session->world.rank);
    if (length >= 4000 || raw < 0) {
        return status_fail(STATUS_USAGE, "run.dir: the path is too long");
    }
    if (io_exists(bench->root)) {
        return status_fail(STATUS_USAGE, "%s: is there already: remove it, or set run.dir",
                           bench->root);
    }
    bench->block = aligned_alloc(IO_ALIGNMENT, (size_t)MANIFEST_BLOCK_BYTES);
    if (bench->block == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for a block");
    }
    memset(bench->block, 0x5a, (size_t)MANIFEST_BLOCK_BYTES);
    return model_init(&bench->model, config, &session->mesh, session->device,
                      config->train.micro_batch, config->train.sequence_length, true);
}

static enum status run(struct disk_bench *bench, int64_t rounds, bool json)
{
    struct comm *world = &bench->session->world;
    TRY(comm_agree(world, open_bench(bench), NULL));
    model_initialize(&bench->model);
    optimizer_start_average(&bench->model);
    enum status status = run_rounds(bench, rounds);
    if (status == STATUS_OK && world->rank == 0) {
        print(bench, rounds, json);
    }
    comm_barrier(world);
    if (world->rank == 0) {
        const enum status removed = io_remove_tree(bench->root);
        status = status == STATUS_OK ? removed : status;
    }
    return comm_agree(world, status, NULL);
}

enum status bench_checkpoint(struct session *session, int64_t rounds, bool json)
{
    if (rounds < 1 || rounds > MOST_ROUNDS) {
        return status_fail(STATUS_USAGE, "bench: --checkpoint takes --steps 1 to %d", MOST_ROUNDS);
    }
    struct disk_bench *bench = calloc(1, sizeof *bench);
    enum status status =
        comm_agree(&session->world,
                   bench != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory"), NULL);
    if (bench == NULL || status != STATUS_OK) {
        free(bench);
        return status;
    }
    bench->session = session;
    status = run(bench, rounds, json);
    model_free(&bench->model);
    free(bench->block);
    free(bench);
    return status;
}
