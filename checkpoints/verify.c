#include "checkpoints/verify.h"

#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/blocks.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/tensor_hash.h"
#include "kernels/base/h5_reader.h"
#include "kernels/base/io.h"

enum { MAX_PATH = 4096, MOST_LINE = 1024, NAMED_TENSORS = 3 };

/* One verification on its way. */
struct verification {
    const char *path;
    const struct manifest *manifest;
    struct verify_result *result;
    void (*tell)(void *, const char *);
    void *context;
};

static void problem(struct verification *v, const char *line)
{
    v->result->problems++;
    v->tell(v->context, line);
}

/* What is damaged or cannot be read is a problem of the checkpoint's; other errors are passed on.
 */
static enum status count(struct verification *v, enum status status)
{
    if (status != STATUS_DATA && status != STATUS_IO) {
        return status;
    }
    problem(v, status_message());
    return STATUS_OK;
}

/* --- blocks --- */

static bool lies_in(const struct manifest_tensor *tensor, int64_t file, int64_t begin, int64_t end)
{
    const int64_t width = (int64_t)dtype_bytes(tensor->dtype);
    for (int64_t p = 0; p < tensor->pieces; p++) {
        const struct manifest_piece *piece = &tensor->piece[p];
        if (piece->file == file && piece->offset < end &&
            piece->offset + piece->count * width > begin) {
            return true;
        }
    }
    return false;
}

/* ": tensors A, B, C and 5 more" of those in a block; "" when it holds none. */
static void tensors_text(char *out, size_t room, const struct manifest *manifest, int64_t file,
                         int64_t block)
{
    const int64_t begin = block * MANIFEST_BLOCK_BYTES, end = begin + MANIFEST_BLOCK_BYTES;
    int64_t found = 0;
    size_t used = 0;
    out[0] = '\0';
    for (int64_t i = 0; i < manifest->tensors; i++) {
        if (lies_in(&manifest->tensor[i], file, begin, end) && ++found <= NAMED_TENSORS) {
            used += (size_t)snprintf(out + used, room - used, "%s%s",
                                     found == 1 ? ": tensors " : ", ", manifest->tensor[i].name);
        }
    }
    if (found > NAMED_TENSORS) {
        snprintf(out + used, room - used, " and %lld more", (long long)(found - NAMED_TENSORS));
    }
}

static void bad_block(void *context, int64_t file, int64_t block)
{
    struct verification *v = context;
    char line[MOST_LINE], tensors[MOST_LINE / 2];
    tensors_text(tensors, sizeof tensors, v->manifest, file, block);
    snprintf(line, sizeof line, "%s: damaged in block %lld (bytes from %lld)%s",
             v->manifest->file[file].name, (long long)block,
             (long long)(block * MANIFEST_BLOCK_BYTES), tensors);
    problem(v, line);
}

static enum status check_files(struct verification *v)
{
    for (int64_t i = 0; i < v->manifest->files; i++) {
        TRY(count(v, blocks_verify_all(v->manifest, i, v->path, bad_block, v)));
        v->result->bytes += v->manifest->file[i].bytes;
    }
    return STATUS_OK;
}

/* --- tensors --- */

static enum status hash_tensor(struct checkpoint_reader *reader,
                               const struct manifest_tensor *tensor, char *buffer, uint64_t *sum)
{
    const int64_t width = (int64_t)dtype_bytes(tensor->dtype), count = manifest_elements(tensor);
    const int64_t step = MANIFEST_BLOCK_BYTES / width;
    struct tensor_hash hash;
    tensor_hash_start(&hash, 0, (size_t)width);
    for (int64_t at = 0; at < count; at += step) {
        const int64_t some = count - at < step ? count - at : step;
        TRY(checkpoint_read(reader, tensor->name, at, some, buffer));
        tensor_hash_add(&hash, buffer, (size_t)(some * width));
    }
    *sum = hash.sum;
    return STATUS_OK;
}

static enum status check_tensors(struct verification *v)
{
    char line[MOST_LINE], *buffer = blocks_buffer();
    struct checkpoint_reader *reader = NULL;
    enum status status = buffer != NULL
                             ? checkpoint_open(&reader, v->path)
                             : status_fail(STATUS_RESOURCE, "out of memory for reading a file");
    for (int64_t i = 0; i < v->manifest->tensors && status == STATUS_OK; i++) {
        const struct manifest_tensor *tensor = &v->manifest->tensor[i];
        uint64_t sum = 0;
        status = tensor->hashed ? hash_tensor(reader, tensor, buffer, &sum) : STATUS_OK;
        if (status == STATUS_OK && tensor->hashed && sum != tensor->hash) {
            snprintf(line, sizeof line, "tensor %s: its elements have another hash than it",
                     tensor->name);
            problem(v, line);
        }
    }
    checkpoint_close(reader);
    free(buffer);
    return status;
}

/* --- what HDF5 sees; only after the hashes agreed --- */

/* Whether the piece is where a reader by HDF5 would find it. */
static bool same_place(hid_t file, const struct manifest_tensor *tensor,
                       const struct manifest_piece *piece, bool is_first)
{
    char name[MANIFEST_DATASET_BYTES];
    manifest_dataset(name, tensor->name, piece->first, is_first);
    const hid_t set = H5Dopen2(file, name, H5P_DEFAULT);
    const bool same =
        set >= 0 && H5Dget_offset(set) == (haddr_t)piece->offset &&
        H5Dget_storage_size(set) == (hsize_t)piece->count * dtype_bytes(tensor->dtype);
    if (set >= 0) {
        H5Dclose(set);
    }
    return same;
}

static bool same_shape(hid_t file, const struct manifest_tensor *tensor)
{
    hsize_t dims[H5S_MAX_RANK] = {0};
    const hid_t set = H5Dopen2(file, tensor->name, H5P_DEFAULT);
    const hid_t space = set >= 0 ? H5Dget_space(set) : -1;
    bool same = space >= 0 && H5Sget_simple_extent_dims(space, dims, NULL) == tensor->ndim;
    for (int i = 0; i < tensor->ndim && same; i++) {
        same = dims[i] == (hsize_t)tensor->shape[i];
    }
    if (set >= 0) {
        H5Sclose(space);
        H5Dclose(set);
    }
    return same;
}

static bool agrees(hid_t file, int64_t index, bool view, const struct manifest_tensor *tensor)
{
    if (view) {
        return same_shape(file, tensor);
    }
    bool is_first = true, same = true;
    for (int64_t p = 0; p < tensor->pieces && same; p++) {
        if (tensor->piece[p].file == index) {
            same = same_place(file, tensor, &tensor->piece[p], is_first);
            is_first = false;
        }
    }
    return same;
}

/* What HDF5 sees of a file, tensor by tensor, as long as it can be read. */
static void compare_tensors(struct verification *v, int64_t index, const struct h5_reader *reader)
{
    const char *name = v->manifest->file[index].name;
    char line[MOST_LINE];
    for (int64_t i = 0; i < v->manifest->tensors; i++) {
        const struct manifest_tensor *tensor = &v->manifest->tensor[i];
        const bool same = agrees(reader->id, index, strcmp(name, "model.h5") == 0, tensor);
        if (reader->status != STATUS_OK) {
            return;
        }
        if (!same) {
            snprintf(line, sizeof line, "%s: HDF5 has tensor %s otherwise than the manifest", name,
                     tensor->name);
            problem(v, line);
        }
    }
}

static enum status read_hdf5(struct verification *v, int64_t index, struct io_file *file)
{
    struct h5_reader reader;
    char line[MOST_LINE];
    enum status status = h5_reader_open(&reader, file);
    if (status == STATUS_OK && reader.id < 0) {
        snprintf(line, sizeof line, "%s: HDF5 cannot open it", v->manifest->file[index].name);
        problem(v, line);
    } else if (status == STATUS_OK) {
        compare_tensors(v, index, &reader);
        status = h5_reader_status(&reader);
    }
    h5_reader_close(&reader);
    return status;
}

static enum status check_hdf5(struct verification *v, int64_t index)
{
    char name[MAX_PATH];
    struct io_file file;
    const char *short_name = v->manifest->file[index].name;
    const size_t length = strlen(short_name);
    if (length < 3 || strcmp(short_name + length - 3, ".h5") != 0) {
        return STATUS_OK;
    }
    snprintf(name, sizeof name, "%s/%s", v->path, short_name); /* opened before: it fits */
    enum status status = io_open_read(&file, name);
    if (status == STATUS_OK) {
        status = read_hdf5(v, index, &file);
        const enum status closed = io_close(&file);
        status = status == STATUS_OK ? closed : status;
    }
    return count(v, status);
}

static enum status verify(struct verification *v, bool deep)
{
    TRY(check_files(v));
    if (deep && v->result->problems == 0) {
        TRY(count(v, check_tensors(v)));
        for (int64_t i = 0; i < v->manifest->files; i++) {
            TRY(check_hdf5(v, i));
        }
    }
    return v->result->problems == 0 ? STATUS_OK
                                    : status_fail(STATUS_DATA, "%s: %lld problems: not usable",
                                                  v->path, (long long)v->result->problems);
}

enum status verify_checkpoint(const char *path, bool deep, struct verify_result *result,
                              void (*tell)(void *, const char *), void *context)
{
    struct manifest manifest;
    *result = (struct verify_result){0};
    const enum status status = manifest_read(&manifest, path);
    struct verification v = {
        .path = path, .manifest = &manifest, .result = result, .tell = tell, .context = context};
    if (status != STATUS_OK) {
        problem(&v, status_message());
        return status;
    }
    result->step = manifest.step;
    result->files = manifest.files;
    result->tensors = manifest.tensors;
    const enum status verified = verify(&v, deep);
    manifest_free(&manifest);
    return verified;
}
