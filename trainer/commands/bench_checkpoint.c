#include "trainer/commands/bench_checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/manifest.h"
#include "kernels/base/io.h"
#include "kernels/base/json_out.h"
#include "trainer/figures.h"
#include "trainer/optimizer.h"
#include "trainer/state.h"
#include "trainer/step.h"

enum { MAX_PATH = 4096, MOST_ROUNDS = 100, NAME_BYTES = 160 };

/* WRITTEN: the part of a save until the slowest rank's shard is on the disk; the rest is reading
 * back and publishing. OTHER: a load of `other`. */
enum what { RAW_WRITE, SAVE, RAW_READ, LOAD, OTHER, WRITTEN, KINDS };
static const char *const names[KINDS] = {"raw_write", "save",       "raw_read",
                                         "load",      "load_other", "written"};

struct disk_bench {
    struct session *session;
    struct model model;
    char root[MAX_PATH], raw[MAX_PATH];
    const char *other;                  /* a checkpoint of the model on another layout; or NULL */
    char *block;                        /* owned: MANIFEST_BLOCK_BYTES, aligned */
    int64_t saved, loaded;              /* bytes of a checkpoint; of it read by a load */
    double shard_clock;                 /* when this rank's shard was closed */
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

static void see(void *context, const struct io_event *event)
{
    struct disk_bench *bench = context;
    if (event->kind == IO_CLOSE && strstr(event->path, "/shard-") != NULL) {
        bench->shard_clock = step_clock();
    }
}

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
    case LOAD:
        return state_load(&bench->model, place, &at);
    default:
        return state_load(&bench->model, bench->other, &at);
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

static enum status time_save(struct disk_bench *bench, int64_t round)
{
    const double started = step_clock();
    double written = 0;
    io_observe(see, bench);
    const enum status status = time_one(bench, SAVE, round + 2, &bench->seconds[SAVE][round]);
    io_observe(NULL, NULL);
    written = bench->shard_clock - started;
    comm_all_reduce(&bench->session->world, &written, 1, DTYPE_F64, REDUCE_MAX);
    bench->seconds[WRITTEN][round] = written;
    return status;
}

static enum status run_rounds(struct disk_bench *bench, int64_t rounds)
{
    struct comm *world = &bench->session->world;
    double warm = 0;
    TRY(time_one(bench, SAVE, 1, &warm));
    TRY(comm_agree(world, weigh(bench), NULL));
    for (int64_t round = 0; round < rounds; round++) {
        const int last = bench->other != NULL ? OTHER : LOAD;
        for (int what = 0; what <= last; what++) {
            TRY(what == SAVE
                    ? time_save(bench, round)
                    : time_one(bench, (enum what)what, round + 2, &bench->seconds[what][round]));
        }
    }
    return STATUS_OK;
}

/* --- report --- */

static double median(const double *values, int64_t rounds)
{
    double sorted[MOST_ROUNDS];
    memcpy(sorted, values, (size_t)rounds * sizeof *values);
    figure_sort(sorted, rounds);
    return sorted[rounds / 2];
}

static int64_t bytes_of(const struct disk_bench *bench, enum what what)
{
    return what == SAVE || what == WRITTEN ? bench->saved
           : what == LOAD || what == OTHER ? bench->loaded
                                           : own_bytes(bench) * bench->session->world.size;
}

/* GB/s of the median round. */
static double rate(const struct disk_bench *bench, enum what what, int64_t rounds)
{
    return (double)bytes_of(bench, what) / median(bench->seconds[what], rounds) / 1e9;
}

/* Time a byte takes in plain files, both ways or one, over the time it takes here, side by side: of
 * the median round. */
static double share(const struct disk_bench *bench, enum what what, bool writes, bool reads,
                    int64_t rounds)
{
    double shares[MOST_ROUNDS];
    for (int64_t i = 0; i < rounds; i++) {
        const double plain =
            (writes ? bench->seconds[RAW_WRITE][i] : 0) + (reads ? bench->seconds[RAW_READ][i] : 0);
        shares[i] = plain / (double)bytes_of(bench, RAW_WRITE) /
                    (bench->seconds[what][i] / (double)bytes_of(bench, what));
    }
    return median(shares, rounds);
}

/* Times a load of the same layout. */
static double other_times(const struct disk_bench *bench, int64_t rounds)
{
    double times[MOST_ROUNDS];
    for (int64_t i = 0; i < rounds; i++) {
        times[i] = bench->seconds[OTHER][i] / bench->seconds[LOAD][i];
    }
    return median(times, rounds);
}

static void print_json(const struct disk_bench *bench, int64_t rounds)
{
    const double shares[] = {share(bench, WRITTEN, true, false, rounds),
                             share(bench, SAVE, true, true, rounds),
                             share(bench, LOAD, false, true, rounds)};
    printf("{\"bytes\":%lld,\"loaded_bytes\":%lld,\"ranks\":%d,\"rounds\":%lld",
           (long long)bench->saved, (long long)bench->loaded, bench->session->world.size,
           (long long)rounds);
    for (int what = 0; what < KINDS; what++) {
        char before[64];
        snprintf(before, sizeof before, ",\"%s_gb_per_s\":", names[what]);
        if (what != OTHER || bench->other != NULL) {
            json_out_number(stdout, before, rate(bench, (enum what)what, rounds), 6);
        }
    }
    json_out_number(stdout, ",\"written_of_raw_write\":", shares[0], 4);
    json_out_number(stdout, ",\"save_of_raw_write_and_read\":", shares[1], 4);
    json_out_number(stdout, ",\"load_of_raw_read\":", shares[2], 4);
    if (bench->other != NULL) {
        json_out_number(stdout, ",\"other_over_load\":", other_times(bench, rounds), 4);
    }
    printf("}\n");
}

static void print_text(const struct disk_bench *bench, int64_t rounds)
{
    printf("checkpoint of %.1f MiB on %d ranks, medians of %lld rounds; plain files: written %.3f "
           "GB/s, "
           "read %.3f GB/s\n",
           (double)bench->saved / 1048576.0, bench->session->world.size, (long long)rounds,
           rate(bench, RAW_WRITE, rounds), rate(bench, RAW_READ, rounds));
    printf("shards written and synced %8.3f s  %6.3f GB/s: %3.0f %% of a plain file written\n",
           median(bench->seconds[WRITTEN], rounds), rate(bench, WRITTEN, rounds),
           100 * share(bench, WRITTEN, true, false, rounds));
    printf("save, read back, verified %8.3f s  %6.3f GB/s: %3.0f %% of a plain file written and "
           "read\n",
           median(bench->seconds[SAVE], rounds), rate(bench, SAVE, rounds),
           100 * share(bench, SAVE, true, true, rounds));
    printf("load, verified            %8.3f s  %6.3f GB/s: %3.0f %% of a plain file read\n",
           median(bench->seconds[LOAD], rounds), rate(bench, LOAD, rounds),
           100 * share(bench, LOAD, false, true, rounds));
    if (bench->other != NULL) {
        printf("load of %s %8.3f s  %6.3f GB/s: %.2f times as long\n", bench->other,
               median(bench->seconds[OTHER], rounds), rate(bench, OTHER, rounds),
               other_times(bench, rounds));
    }
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
        (json ? print_json : print_text)(bench, rounds);
    }
    comm_barrier(world);
    if (world->rank == 0) {
        const enum status removed = io_remove_tree(bench->root);
        status = status == STATUS_OK ? removed : status;
    }
    return comm_agree(world, status, NULL);
}

enum status bench_checkpoint(struct session *session, int64_t rounds, const char *other, bool json)
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
    bench->other = other;
    status = run(bench, rounds, json);
    model_free(&bench->model);
    free(bench->block);
    free(bench);
    return status;
}
