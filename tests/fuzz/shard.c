/* libFuzzer target: a shard whose HDF5 header was changed before its hashes were taken, as by bad
 * memory. Verifying it deeply must end, in the memory it has; it is good only where HDF5 still
 * finds all that the manifest says.
 *
 * The input is a list of edits (place, 2 bytes; value, 1 byte) of a shard written at the start.
 * HDF5's own checksums are left alone: libhdf5 1.10 crashes on headers that were made to deceive
 * it, which is why checkpoints of strangers are not safe to open with HDF5.
 */
#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoints/manifest.h"
#include "checkpoints/shard.h"
#include "checkpoints/verify.h"
#include "kernels/base/hash.h"
#include "kernels/base/io.h"

enum { HEADER = 8192 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static char folder[64], shard_path[96], manifest_path[96];
static struct manifest manifest;
static char *shard;
static size_t shard_bytes;

/* One rank needs no MPI. */
enum status comm_agree(struct comm *comm, enum status status, int *where)
{
    (void)comm;
    (void)where;
    return status;
}

static void leave(void)
{
    const enum status ignored = io_remove_tree(folder);
    (void)ignored;
    manifest_free(&manifest);
    free(shard);
}

static void start(void)
{
    static float values[300];
    static uint16_t bits[70];
    const struct checkpoint_slice slices[] = {
        {.name = "master/layers.0.a",
         .dtype = DTYPE_F32,
         .ndim = 2,
         .shape = {100, 3},
         .count = 300,
         .data = values},
        {.name = "layers.0.columns",
         .dtype = DTYPE_F32,
         .ndim = 2,
         .shape = {10, 3},
         .count = 20,
         .run = 2,
         .stride = 3,
         .data = values},
        {.name = "layers.0.columns",
         .dtype = DTYPE_F32,
         .ndim = 2,
         .shape = {10, 3},
         .first = 2,
         .count = 10,
         .run = 1,
         .stride = 3,
         .data = values},
        {.name = "layers.0.a",
         .dtype = DTYPE_BF16,
         .ndim = 1,
         .shape = {70},
         .count = 70,
         .data = bits},
    };
    for (int i = 0; i < 300; i++) {
        values[i] = (float)i;
        bits[i % 70] = (uint16_t)i;
    }
    snprintf(folder, sizeof folder, "%s/switchyard-fuzz-%ld",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp", (long)getpid());
    snprintf(shard_path, sizeof shard_path, "%s/shard-00000.h5", folder);
    snprintf(manifest_path, sizeof manifest_path, "%s/manifest.json", folder);
    manifest.ranks = 1;
    if (io_make_dir(folder) != STATUS_OK ||
        shard_write(&manifest, folder, "shard-00000.h5", slices, 4) != STATUS_OK ||
        manifest_seal(&manifest) != STATUS_OK ||
        io_read_file(shard_path, &shard, &shard_bytes, 1 << 20) != STATUS_OK) {
        abort();
    }
    assert(shard_bytes < MANIFEST_BLOCK_BYTES);
    atexit(leave);
}

static void tell(void *context, const char *line)
{
    (void)context;
    assert(line[0] != '\0');
}

static void write_plainly(const char *path, const void *data, size_t bytes)
{
    FILE *out = fopen(path, "w");
    const bool good = out != NULL && fwrite(data, 1, bytes, out) == bytes;
    if (out == NULL || fclose(out) != 0 || !good) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct verify_result result;
    if (shard == NULL) {
        start();
    }
    unsigned char *file = malloc(shard_bytes);
    assert(file != NULL);
    memcpy(file, shard, shard_bytes);
    for (size_t i = 0; i + 3 <= bytes; i += 3) {
        const size_t limit = shard_bytes < HEADER ? shard_bytes : HEADER;
        file[(data[i] | (size_t)data[i + 1] << 8) % limit] = data[i + 2];
    }
    write_plainly(shard_path, file, shard_bytes);
    manifest.file[0].block[0] = hash_bytes(file, shard_bytes);
    char *text = manifest_print(&manifest);
    assert(text != NULL);
    write_plainly(manifest_path, text, strlen(text));
    const enum status status = verify_checkpoint(folder, true, &result, tell, NULL);
    assert((status == STATUS_OK) == (result.problems == 0));
    assert(memcmp(file, shard, shard_bytes) != 0 || status == STATUS_OK);
    free(text);
    free(file);
    return 0;
}
