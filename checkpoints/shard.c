#include "checkpoints/shard.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/h5.h"
#include "kernels/base/hash.h"
#include "kernels/base/io.h"

enum { MAX_PATH = 4096 };

static int64_t slice_bytes(const struct checkpoint_slice *slice)
{
    return slice->count * (int64_t)dtype_bytes(slice->dtype);
}

/* Creates the dataset of a slice; returns the byte offset of its space in the file, -1 on error. */
static int64_t create_dataset(hid_t file, const struct checkpoint_slice *slice)
{
    const hsize_t count = (hsize_t)slice->count;
    const hid_t type = h5_type(slice->dtype), space = H5Screate_simple(1, &count, NULL);
    const hid_t list = h5_dataset_list();
    h5_make_groups(file, slice->name);
    const hid_t set = H5Dcreate2(file, slice->name, type, space, H5P_DEFAULT, list, H5P_DEFAULT);
    haddr_t offset = HADDR_UNDEF;
    if (set >= 0) {
        h5_set_text(set, "dtype", dtype_name(slice->dtype));
        h5_set_ints(set, "shape", slice->shape, slice->ndim);
        h5_set_ints(set, "first", &slice->first, 1);
        h5_set_ints(set, "count", &slice->count, 1);
        offset = H5Dget_offset(set);
        H5Dclose(set);
    }
    H5Pclose(list);
    H5Sclose(space);
    H5Tclose(type);
    return offset == HADDR_UNDEF ? -1 : (int64_t)offset;
}

/* The file with its metadata, payload still to come; offsets[count] in bytes. */
static enum status lay_out(const char *path, const struct checkpoint_slice *slices, int64_t count,
                           int64_t *offsets)
{
    hid_t file = -1;
    TRY(h5_create(&file, path));
    bool good = true;
    for (int64_t i = 0; i < count && good; i++) {
        offsets[i] = create_dataset(file, &slices[i]);
        good = offsets[i] >= 0;
    }
    good = H5Fclose(file) >= 0 && good;
    return good ? STATUS_OK
                : status_fail(STATUS_IO, "%s: HDF5 could not lay it out: disk full?", path);
}

/* Payload of a file in rising order of offset. */
struct payload {
    const struct checkpoint_slice *slice;
    int64_t offset;
};

static int by_offset(const void *a, const void *b)
{
    const int64_t x = ((const struct payload *)a)->offset, y = ((const struct payload *)b)->offset;
    return (x > y) - (x < y);
}

static int64_t lesser(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Bytes [from, to) of a slice. */
static enum status take(const struct checkpoint_slice *slice, int64_t from, int64_t to, char *out)
{
    if (slice->read != NULL) {
        return slice->read(slice, from, out, (size_t)(to - from));
    }
    memcpy(out, (const char *)slice->data + from, (size_t)(to - from));
    return STATUS_OK;
}

/* Copies what of the payload falls into [begin, end) of the file to buffer; buffer NULL: counts
 * only. *next skips what is done. */
static enum status overlay(char *buffer, int64_t begin, int64_t end, const struct payload *payload,
                           int64_t count, int64_t *next, int64_t *covered)
{
    *covered = 0;
    while (*next < count && payload[*next].offset + slice_bytes(payload[*next].slice) <= begin) {
        ++*next;
    }
    for (int64_t i = *next; i < count && payload[i].offset < end; i++) {
        const int64_t offset = payload[i].offset, from = offset > begin ? offset : begin;
        const int64_t to = lesser(offset + slice_bytes(payload[i].slice), end);
        if (buffer != NULL) {
            TRY(take(payload[i].slice, from - offset, to - offset, buffer + (from - begin)));
        }
        *covered += to - from;
    }
    return STATUS_OK;
}

/* One block: HDF5's own bytes where there are any, the payload over them. */
static enum status fill_block(struct io_file *file, char *buffer, int64_t begin, int64_t size,
                              const struct payload *payload, int64_t count, int64_t *next)
{
    int64_t covered = 0;
    TRY(overlay(NULL, begin, begin + size, payload, count, next, &covered));
    if (covered < size) {
        TRY(io_pread(file, buffer, (size_t)size, begin));
    }
    TRY(overlay(buffer, begin, begin + size, payload, count, next, &covered));
    return covered > 0 ? io_pwrite(file, buffer, (size_t)size, begin) : STATUS_OK;
}

/* Writes the payload block by block, metadata of HDF5 between it kept, and hashes every block. */
static enum status fill(struct io_file *file, int64_t bytes, const struct payload *payload,
                        int64_t count, uint64_t *block)
{
    char *buffer = malloc((size_t)MANIFEST_BLOCK_BYTES);
    int64_t next = 0;
    enum status status =
        buffer != NULL ? STATUS_OK
                       : status_fail(STATUS_RESOURCE, "out of memory for writing a checkpoint");
    for (int64_t b = 0; b < manifest_blocks(bytes) && status == STATUS_OK; b++) {
        const int64_t begin = b * MANIFEST_BLOCK_BYTES,
                      size = lesser(MANIFEST_BLOCK_BYTES, bytes - begin);
        status = fill_block(file, buffer, begin, size, payload, count, &next);
        block[b] = status == STATUS_OK ? hash_bytes(buffer, (size_t)size) : 0;
    }
    free(buffer);
    return status;
}

static enum status write_payload(const char *path, const struct payload *payload, int64_t count,
                                 int64_t *bytes, uint64_t **block)
{
    struct io_file file;
    *block = NULL;
    TRY(io_open_write(&file, path));
    enum status status = io_size(&file, bytes);
    if (status == STATUS_OK) {
        *block = calloc((size_t)manifest_blocks(*bytes) + 1, sizeof **block);
        status = *block != NULL
                     ? fill(&file, *bytes, payload, count, *block)
                     : status_fail(STATUS_RESOURCE, "out of memory for writing a checkpoint");
    }
    status = status == STATUS_OK ? io_sync(&file) : status;
    const enum status closed = io_close(&file);
    return status == STATUS_OK ? closed : status;
}

static enum status add_pieces(struct manifest *manifest, const struct checkpoint_slice *slices,
                              int64_t count, const int64_t *offsets)
{
    for (int64_t i = 0; i < count; i++) {
        const struct checkpoint_slice *slice = &slices[i];
        struct manifest_tensor like = {.dtype = slice->dtype, .ndim = slice->ndim};
        snprintf(like.name, sizeof like.name, "%s", slice->name);
        memcpy(like.shape, slice->shape, sizeof like.shape);
        TRY(manifest_add_piece(manifest, &like,
                               (struct manifest_piece){.file = manifest->files - 1,
                                                       .first = slice->first,
                                                       .count = slice->count,
                                                       .offset = offsets[i]}));
    }
    return STATUS_OK;
}

static enum status write_shard(struct manifest *manifest, const char *path, const char *name,
                               const struct checkpoint_slice *slices, int64_t count,
                               int64_t *offsets, struct payload *payload)
{
    uint64_t *block = NULL;
    int64_t bytes = 0;
    TRY(lay_out(path, slices, count, offsets));
    for (int64_t i = 0; i < count; i++) {
        payload[i] = (struct payload){.slice = &slices[i], .offset = offsets[i]};
    }
    qsort(payload, (size_t)count, sizeof *payload, by_offset);
    enum status status = write_payload(path, payload, count, &bytes, &block);
    if (status == STATUS_OK) {
        status = manifest_add_file(manifest, name, bytes, block);
    }
    free(block);
    return status == STATUS_OK ? add_pieces(manifest, slices, count, offsets) : status;
}

enum status shard_write(struct manifest *manifest, const char *path, const char *name,
                        const struct checkpoint_slice *slices, int64_t count)
{
    char file[MAX_PATH];
    int64_t *offsets = calloc((size_t)count + 1, sizeof *offsets);
    struct payload *payload = calloc((size_t)count + 1, sizeof *payload);
    enum status status = STATUS_OK;
    if (offsets == NULL || payload == NULL ||
        snprintf(file, sizeof file, "%s/%s", path, name) >= MAX_PATH) {
        status = status_fail(STATUS_RESOURCE, "%s/%s: out of memory, or the path is too long", path,
                             name);
    } else {
        status = write_shard(manifest, file, name, slices, count, offsets, payload);
    }
    free(payload);
    free(offsets);
    return status;
}

/* Calls with every block's hash in turn: stores it, or compares it. */
static enum status hash_file(struct io_file *file, int64_t bytes, uint64_t *block)
{
    char *buffer = malloc((size_t)MANIFEST_BLOCK_BYTES);
    enum status status = buffer != NULL
                             ? STATUS_OK
                             : status_fail(STATUS_RESOURCE, "out of memory for reading a file");
    for (int64_t b = 0; b < manifest_blocks(bytes) && status == STATUS_OK; b++) {
        const int64_t begin = b * MANIFEST_BLOCK_BYTES,
                      size = lesser(MANIFEST_BLOCK_BYTES, bytes - begin);
        status = io_pread(file, buffer, (size_t)size, begin);
        block[b] = status == STATUS_OK ? hash_bytes(buffer, (size_t)size) : 0;
    }
    free(buffer);
    return status;
}

/* Size and block hashes of path/name as it is on disk; *block owned by caller. */
static enum status measure(const char *path, const char *name, int64_t *bytes, uint64_t **block)
{
    char full[MAX_PATH];
    struct io_file file;
    *block = NULL;
    if (snprintf(full, sizeof full, "%s/%s", path, name) >= MAX_PATH) {
        return status_fail(STATUS_IO, "path too long: %s/%s", path, name);
    }
    TRY(io_open_read(&file, full));
    enum status status = io_size(&file, bytes);
    if (status == STATUS_OK) {
        *block = calloc((size_t)manifest_blocks(*bytes) + 1, sizeof **block);
        status = *block != NULL ? hash_file(&file, *bytes, *block)
                                : status_fail(STATUS_RESOURCE, "out of memory");
    }
    const enum status closed = io_close(&file);
    return status == STATUS_OK ? closed : status;
}

enum status shard_add_file(struct manifest *manifest, const char *path, const char *name)
{
    int64_t bytes = 0;
    uint64_t *block = NULL;
    enum status status = measure(path, name, &bytes, &block);
    status = status == STATUS_OK ? manifest_add_file(manifest, name, bytes, block) : status;
    free(block);
    return status;
}

enum status shard_verify(const struct manifest *manifest, int64_t index, const char *path)
{
    const struct manifest_file *file = &manifest->file[index];
    int64_t bytes = 0;
    uint64_t *block = NULL;
    enum status status = measure(path, file->name, &bytes, &block);
    if (status == STATUS_OK && bytes != file->bytes) {
        status = status_fail(STATUS_DATA, "%s/%s: %lld bytes, the manifest says %lld", path,
                             file->name, (long long)bytes, (long long)file->bytes);
    }
    for (int64_t b = 0; status == STATUS_OK && b < manifest_blocks(bytes); b++) {
        if (block[b] != file->block[b]) {
            status =
                status_fail(STATUS_DATA, "%s/%s: damaged in block %lld (bytes from %lld)", path,
                            file->name, (long long)b, (long long)(b * MANIFEST_BLOCK_BYTES));
        }
    }
    free(block);
    return status;
}

/* Box of a virtual dataset: `rows` rows from `row`, columns [column, column + columns). */
struct box {
    int64_t row, rows, column, columns;
};

/* A flat range of a matrix is at most three boxes: the rest of a row, whole rows, the start of a
 * row. */
static int cut(struct box boxes[3], int64_t first, int64_t count, int64_t width)
{
    int used = 0;
    while (count > 0) {
        const int64_t column = first % width;
        struct box box = {.row = first / width,
                          .rows = 1,
                          .column = column,
                          .columns = lesser(width - column, count)};
        if (column == 0 && count >= width) {
            box.rows = count / width;
        }
        const int64_t taken = box.rows * box.columns;
        assert(used < 3);
        boxes[used++] = box;
        first += taken;
        count -= taken;
    }
    return used;
}

/* Maps one piece. A tensor of n dimensions is seen as [all but the last, last] and must be 1-D or
 * 2-D here. */
static bool map_piece(hid_t list, hid_t whole, const struct manifest_tensor *tensor,
                      const struct manifest_piece *piece, const char *file)
{
    struct box boxes[3];
    const int64_t width = tensor->shape[tensor->ndim - 1];
    const int count = cut(boxes, piece->first, piece->count,
                          tensor->ndim == 1 ? piece->first + piece->count : width);
    hsize_t begin = 0;
    bool good = true;
    for (int i = 0; i < count; i++) {
        const struct box box = boxes[i];
        const hsize_t start[2] = {(hsize_t)box.row, (hsize_t)box.column};
        const hsize_t size[2] = {(hsize_t)box.rows, (hsize_t)box.columns};
        const hsize_t elements = size[0] * size[1], all = (hsize_t)piece->count;
        const int skip = tensor->ndim == 1;
        const hid_t source = H5Screate_simple(1, &all, NULL);
        H5Sselect_hyperslab(source, H5S_SELECT_SET, &begin, NULL, &elements, NULL);
        H5Sselect_hyperslab(whole, H5S_SELECT_SET, start + skip, NULL, size + skip, NULL);
        good = H5Pset_virtual(list, whole, file, tensor->name, source) >= 0 && good;
        H5Sclose(source);
        begin += elements;
    }
    return good;
}

static bool map_tensor(hid_t file, const struct manifest *manifest,
                       const struct manifest_tensor *tensor)
{
    hsize_t dims[4];
    for (int i = 0; i < tensor->ndim; i++) {
        dims[i] = (hsize_t)tensor->shape[i];
    }
    const hid_t whole = H5Screate_simple(tensor->ndim, dims, NULL),
                list = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_obj_track_times(list, false);
    bool good = true;
    for (int64_t p = 0; p < tensor->pieces && good; p++) {
        const struct manifest_piece *piece = &tensor->piece[p];
        good = map_piece(list, whole, tensor, piece, manifest->file[piece->file].name);
    }
    H5Sselect_all(whole);
    const hid_t type = h5_type(tensor->dtype);
    h5_make_groups(file, tensor->name);
    const hid_t set =
        good ? H5Dcreate2(file, tensor->name, type, whole, H5P_DEFAULT, list, H5P_DEFAULT) : -1;
    if (set >= 0) {
        h5_set_text(set, "dtype", dtype_name(tensor->dtype));
        H5Dclose(set);
    }
    H5Tclose(type);
    H5Pclose(list);
    H5Sclose(whole);
    return set >= 0;
}

enum status shard_view(const struct manifest *manifest, const char *path)
{
    char name[MAX_PATH];
    hid_t file = -1;
    if (snprintf(name, sizeof name, "%s/model.h5", path) >= MAX_PATH) {
        return status_fail(STATUS_IO, "path too long: %s", path);
    }
    TRY(h5_create(&file, name));
    bool good = true;
    for (int64_t i = 0; i < manifest->tensors && good; i++) {
        good = map_tensor(file, manifest, &manifest->tensor[i]);
    }
    good = H5Fclose(file) >= 0 && good;
    if (!good) {
        return status_fail(STATUS_IO, "%s: HDF5 could not write it: disk full?", name);
    }
    struct io_file written;
    TRY(io_open_write(&written, name));
    const enum status status = io_sync(&written), closed = io_close(&written);
    return status == STATUS_OK ? closed : status;
}
