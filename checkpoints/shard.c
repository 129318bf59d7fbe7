#include "checkpoints/shard.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/blocks.h"
#include "checkpoints/h5.h"
#include "checkpoints/tensor_hash.h"

static int64_t slice_bytes(const struct checkpoint_slice *slice)
{
    return slice->count * (int64_t)dtype_bytes(slice->dtype);
}

/* Creates the dataset of a slice, flat, or of a whole tensor; returns the byte offset of its space
 * in the file, -1 on error. `again`: the file has a slice of this tensor already. */
static int64_t create_dataset(hid_t file, const struct checkpoint_slice *slice, bool whole,
                              bool again)
{
    char name[MANIFEST_DATASET_BYTES];
    hsize_t dims[4] = {(hsize_t)slice->count};
    for (int i = 0; whole && i < slice->ndim; i++) {
        dims[i] = (hsize_t)slice->shape[i];
    }
    const hid_t type = h5_type(slice->dtype),
                space = H5Screate_simple(whole ? slice->ndim : 1, dims, NULL);
    const hid_t list = h5_dataset_list();
    manifest_dataset(name, slice->name, slice->first, !again);
    h5_make_groups(file, name);
    const hid_t set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, list, H5P_DEFAULT);
    haddr_t offset = HADDR_UNDEF;
    if (set >= 0) {
        h5_set_text(set, "dtype", dtype_name(slice->dtype));
    }
    if (set >= 0 && !whole) {
        h5_set_ints(set, "shape", slice->shape, slice->ndim);
        h5_set_ints(set, "first", &slice->first, 1);
        h5_set_ints(set, "count", &slice->count, 1);
    }
    if (set >= 0 && !whole && slice->run > 0) {
        h5_set_ints(set, "run", &slice->run, 1);
        h5_set_ints(set, "stride", &slice->stride, 1);
    }
    if (set >= 0) {
        offset = H5Dget_offset(set);
        H5Dclose(set);
    }
    H5Pclose(list);
    H5Sclose(space);
    H5Tclose(type);
    return offset == HADDR_UNDEF ? -1 : (int64_t)offset;
}

/* What is written where. */
struct target {
    const char *path, *name; /* the folder, the file in it */
    bool whole;              /* tensors in their shapes */
};

/* The file but for its payload; offsets[count] in bytes. */
static enum status lay_out(struct h5_image *image, const struct target *target,
                           const struct checkpoint_slice *slices, int64_t count, int64_t *offsets)
{
    hid_t file = -1;
    TRY(h5_create(&file, image));
    bool good = true;
    for (int64_t i = 0; i < count && good; i++) {
        const bool again = i > 0 && strcmp(slices[i].name, slices[i - 1].name) == 0;
        offsets[i] = create_dataset(file, &slices[i], target->whole, again);
        good = offsets[i] >= 0;
    }
    return h5_finish(file, image, good, target->name);
}

/* Payload of a file in rising order of offset. */
struct payload {
    const struct checkpoint_slice *slice;
    int64_t offset;
    struct tensor_hash hash;
};

static int by_offset(const void *a, const void *b)
{
    const int64_t x = ((const struct payload *)a)->offset, y = ((const struct payload *)b)->offset;
    return (x > y) - (x < y);
}

/* A file on its way to the disk. */
struct writing {
    struct h5_image image;
    struct payload *payload; /* [count] owned */
    int64_t *offset;         /* [count] owned: of the slices, in their order */
    int64_t count, next;     /* the first payload that is not all written */
};

/* Bytes [from, to) of a slice. */
static enum status take(const struct checkpoint_slice *slice, int64_t from, int64_t to, char *out)
{
    if (slice->read != NULL) {
        return slice->read(slice, from, out, (size_t)(to - from));
    }
    memcpy(out, (const char *)slice->data + from, (size_t)(to - from));
    return STATUS_OK;
}

static int64_t payload_end(const struct payload *payload)
{
    return payload->offset + slice_bytes(payload->slice);
}

/* A block: HDF5's own bytes where there are any, the payload over them. */
static enum status fill(void *context, int64_t begin, void *to, size_t bytes)
{
    struct writing *writing = context;
    const int64_t end = begin + (int64_t)bytes;
    while (writing->next < writing->count &&
           payload_end(&writing->payload[writing->next]) <= begin) {
        writing->next++;
    }
    const struct payload *first = &writing->payload[writing->next];
    const bool covered =
        writing->next < writing->count && first->offset <= begin && payload_end(first) >= end;
    if (!covered) {
        h5_image_read(&writing->image, begin, to, bytes);
    }
    for (int64_t i = writing->next; i < writing->count; i++) {
        struct payload *payload = &writing->payload[i];
        const int64_t offset = payload->offset, last = payload_end(payload);
        const int64_t from = offset > begin ? offset : begin, until = last < end ? last : end;
        if (offset >= end) {
            break;
        }
        char *place = (char *)to + (from - begin);
        TRY(take(payload->slice, from - offset, until - offset, place));
        tensor_hash_add(&payload->hash, place, (size_t)(until - from));
    }
    return STATUS_OK;
}

static int by_slice(const void *a, const void *b)
{
    const struct checkpoint_slice *x = ((const struct payload *)a)->slice,
                                  *y = ((const struct payload *)b)->slice;
    return (x > y) - (x < y);
}

/* In the order of the slices, so that pieces of a tensor come together. */
static enum status add_pieces(struct manifest *manifest, const struct writing *writing)
{
    qsort(writing->payload, (size_t)writing->count, sizeof *writing->payload, by_slice);
    for (int64_t i = 0; i < writing->count; i++) {
        const struct checkpoint_slice *slice = writing->payload[i].slice;
        struct manifest_tensor like = {.dtype = slice->dtype, .ndim = slice->ndim};
        snprintf(like.name, sizeof like.name, "%s", slice->name);
        memcpy(like.shape, slice->shape, sizeof like.shape);
        TRY(manifest_add_piece(manifest, &like,
                               (struct manifest_piece){.file = manifest->files - 1,
                                                       .first = slice->first,
                                                       .count = slice->count,
                                                       .offset = writing->payload[i].offset,
                                                       .run = slice->run,
                                                       .stride = slice->stride}));
        manifest_add_hash(manifest, writing->payload[i].hash.sum);
    }
    return STATUS_OK;
}

static enum status write_shard(struct manifest *manifest, struct writing *writing,
                               const struct target *target, const struct checkpoint_slice *slices)
{
    TRY(lay_out(&writing->image, target, slices, writing->count, writing->offset));
    for (int64_t i = 0; i < writing->count; i++) {
        struct payload *payload = &writing->payload[i];
        *payload = (struct payload){.slice = &slices[i], .offset = writing->offset[i]};
        tensor_hash_start(&payload->hash, slices[i].first, dtype_bytes(slices[i].dtype));
        tensor_hash_runs(&payload->hash, slices[i].run, slices[i].stride);
    }
    qsort(writing->payload, (size_t)writing->count, sizeof *writing->payload, by_offset);
    TRY(blocks_write(manifest, target->path, target->name, writing->image.bytes, fill, writing));
    return add_pieces(manifest, writing);
}

static enum status write_target(struct manifest *manifest, const struct target *target,
                                const struct checkpoint_slice *slices, int64_t count)
{
    struct writing writing = {.offset = calloc((size_t)count + 1, sizeof *writing.offset),
                              .payload = calloc((size_t)count + 1, sizeof *writing.payload),
                              .count = count};
    const enum status status =
        writing.offset != NULL && writing.payload != NULL
            ? write_shard(manifest, &writing, target, slices)
            : status_fail(STATUS_RESOURCE, "%s/%s: out of memory", target->path, target->name);
    h5_image_free(&writing.image);
    free(writing.payload);
    free(writing.offset);
    return status;
}

enum status shard_write(struct manifest *manifest, const char *path, const char *name,
                        const struct checkpoint_slice *slices, int64_t count)
{
    return write_target(manifest, &(struct target){.path = path, .name = name}, slices, count);
}

enum status shard_write_whole(struct manifest *manifest, const char *path, const char *name,
                              const struct checkpoint_slice *slices, int64_t count)
{
    return write_target(manifest, &(struct target){path, name, true}, slices, count);
}
