#include <assert.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/safetensors.h"

enum { MAX_PATH = 4096, NAME_ROOM = 64, LENGTH_BYTES = 8, ALIGN = 8 };
static const size_t BLOCK_BYTES = (size_t)4 << 20;

/* Tensors [first, last) of the list. */
struct shard {
    int64_t first, last, bytes;
};

struct save {
    const char *folder;
    const struct safetensors_tensor *tensors;
    struct shard *shard; /* [shards] owned */
    int64_t shards;
    safetensors_source source;
    void *context;
    char *block; /* [BLOCK_BYTES] owned */
};

static int64_t tensor_size(const struct safetensors_tensor *tensor)
{
    int64_t bytes = (int64_t)dtype_bytes(tensor->dtype);
    for (int i = 0; i < tensor->ndim; i++) {
        bytes *= tensor->shape[i];
    }
    return bytes;
}

static enum status plan(struct save *save, int64_t count, int64_t most)
{
    save->shard = calloc((size_t)count + 1, sizeof *save->shard);
    save->block = malloc(BLOCK_BYTES);
    if (save->shard == NULL || save->block == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for writing %s", save->folder);
    }
    save->shards = 1;
    for (int64_t i = 0; i < count; i++) {
        const int64_t bytes = tensor_size(&save->tensors[i]);
        struct shard *last = &save->shard[save->shards - 1];
        if (last->bytes > 0 && last->bytes + bytes > most) {
            last = &save->shard[save->shards++];
            last->first = i;
        }
        last->bytes += bytes;
        last->last = i + 1;
    }
    return STATUS_OK;
}

static void shard_name(const struct save *save, int64_t index, char name[NAME_ROOM])
{
    if (save->shards == 1) {
        snprintf(name, NAME_ROOM, "model.safetensors");
    } else {
        snprintf(name, NAME_ROOM, "model-%05lld-of-%05lld.safetensors", (long long)index + 1,
                 (long long)save->shards);
    }
}

static json_t *describe(const struct safetensors_tensor *tensor, int64_t begin)
{
    json_t *shape = json_array();
    for (int i = 0; i < tensor->ndim; i++) {
        json_array_append_new(shape, json_integer(tensor->shape[i]));
    }
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", safetensors_dtype(tensor->dtype), "shape",
                     shape, "data_offsets", (json_int_t)begin,
                     (json_int_t)(begin + tensor_size(tensor)));
}

/* Length and JSON, padded with spaces so that the data is aligned; owned by caller. */
static char *make_header(const struct save *save, const struct shard *shard, size_t *bytes)
{
    json_t *json = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    int64_t begin = 0;
    for (int64_t i = shard->first; i < shard->last; i++) {
        json_object_set_new(json, save->tensors[i].name, describe(&save->tensors[i], begin));
        begin += tensor_size(&save->tensors[i]);
    }
    char *text = json_dumps(json, JSON_COMPACT);
    json_decref(json);
    const size_t used = text != NULL ? strlen(text) : 0,
                 length = (used + ALIGN - 1) / ALIGN * ALIGN;
    char *header = text != NULL ? malloc(LENGTH_BYTES + length) : NULL;
    if (header != NULL) {
        for (int i = 0; i < LENGTH_BYTES; i++) {
            header[i] = (char)(length >> (8 * i) & 0xff);
        }
        memcpy(header + LENGTH_BYTES, text, used);
        memset(header + LENGTH_BYTES + used, ' ', length - used);
        *bytes = LENGTH_BYTES + length;
    }
    free(text);
    return header;
}

static enum status write_data(struct save *save, struct io_file *file, const struct shard *shard)
{
    for (int64_t i = shard->first; i < shard->last; i++) {
        const int64_t all = tensor_size(&save->tensors[i]);
        for (int64_t at = 0; at < all; at += (int64_t)BLOCK_BYTES) {
            const size_t bytes = all - at < (int64_t)BLOCK_BYTES ? (size_t)(all - at) : BLOCK_BYTES;
            TRY(save->source(save->context, i, at, save->block, bytes));
            TRY(io_write(file, save->block, bytes));
        }
    }
    return STATUS_OK;
}

static enum status write_shard(struct save *save, int64_t index)
{
    char name[NAME_ROOM], path[MAX_PATH], beside[MAX_PATH + 8];
    struct io_file file;
    size_t bytes = 0;
    shard_name(save, index, name);
    if (snprintf(path, sizeof path, "%s/%s", save->folder, name) >= MAX_PATH) {
        return status_fail(STATUS_IO, "path too long: %s", save->folder);
    }
    snprintf(beside, sizeof beside, "%s.tmp", path);
    char *header = make_header(save, &save->shard[index], &bytes);
    enum status status =
        header != NULL ? io_create(&file, beside) : status_fail(STATUS_RESOURCE, "out of memory");
    if (status == STATUS_OK) {
        status = io_write(&file, header, bytes);
        status = status == STATUS_OK ? write_data(save, &file, &save->shard[index]) : status;
        status = status == STATUS_OK ? io_sync(&file) : status;
        const enum status closed = io_close(&file);
        status = status == STATUS_OK ? closed : status;
    }
    free(header);
    return status == STATUS_OK ? io_rename(beside, path) : status;
}

static enum status write_own(struct save *save, const struct comm *comm)
{
    for (int64_t i = comm->rank; i < save->shards; i += comm->size) {
        TRY(write_shard(save, i));
    }
    return STATUS_OK;
}

static enum status write_index(const struct save *save, int64_t total)
{
    char path[MAX_PATH], name[NAME_ROOM];
    json_t *map = json_object();
    for (int64_t s = 0; s < save->shards; s++) {
        shard_name(save, s, name);
        for (int64_t i = save->shard[s].first; i < save->shard[s].last; i++) {
            json_object_set_new(map, save->tensors[i].name, json_string(name));
        }
    }
    json_t *json =
        json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)total, "weight_map", map);
    char *text = json_dumps(json, JSON_INDENT(2));
    json_decref(json);
    enum status status =
        text != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory for the index");
    if (status == STATUS_OK &&
        snprintf(path, sizeof path, "%s/model.safetensors.index.json", save->folder) >= MAX_PATH) {
        status = status_fail(STATUS_IO, "path too long: %s", save->folder);
    }
    status = status == STATUS_OK ? io_write_file(path, text, strlen(text)) : status;
    free(text);
    return status;
}

static enum status finish(const struct save *save, int64_t total)
{
    TRY(save->shards > 1 ? write_index(save, total) : STATUS_OK);
    return io_sync_dir(save->folder);
}

enum status safetensors_save(struct comm *comm, const char *folder,
                             const struct safetensors_tensor *tensors, int64_t count,
                             int64_t shard_bytes, safetensors_source source, void *context,
                             struct safetensors_figures *figures)
{
    struct save save = {.folder = folder, .tensors = tensors, .source = source, .context = context};
    int64_t total = 0;
    for (int64_t i = 0; i < count; i++) {
        assert(safetensors_dtype(tensors[i].dtype) != NULL);
        total += tensor_size(&tensors[i]);
    }
    enum status status = comm_agree(comm, plan(&save, count, shard_bytes), NULL);
    if (status == STATUS_OK) {
        status = comm_agree(comm, comm->rank == 0 ? io_make_dir(folder) : STATUS_OK, NULL);
    }
    if (status == STATUS_OK) {
        status = comm_agree(comm, write_own(&save, comm), NULL);
    }
    if (status == STATUS_OK) {
        status = comm_agree(comm, comm->rank == 0 ? finish(&save, total) : STATUS_OK, NULL);
    }
    *figures = (struct safetensors_figures){.shards = save.shards, .bytes = total};
    free(save.shard);
    free(save.block);
    return status;
}
