#include "checkpoints/export_h5.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/manifest.h"
#include "checkpoints/shard.h"
#include "kernels/base/folder.h"
#include "kernels/base/io.h"

/* The elements of a tensor, from the checkpoint. */
static enum status give(const struct checkpoint_slice *slice, int64_t offset, void *to,
                        size_t bytes)
{
    /* NOTE: blocks of the file that is written may cut an element in two. */
    const int64_t width = (int64_t)dtype_bytes(slice->dtype), end = offset + (int64_t)bytes;
    const int64_t first = offset / width, last = (end + width - 1) / width;
    if (offset % width == 0 && end % width == 0) {
        return checkpoint_read(slice->context, slice->name, first, last - first, to);
    }
    char *whole = malloc((size_t)((last - first) * width));
    if (whole == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for a block");
    }
    const enum status status =
        checkpoint_read(slice->context, slice->name, first, last - first, whole);
    if (status == STATUS_OK) {
        memcpy(to, whole + (offset - first * width), bytes);
    }
    free(whole);
    return status;
}

static bool is_weight(const char *name)
{
    static const char *const others[] = {"master/", "moment1/", "moment2/", "ema/"};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        if (strncmp(name, others[i], strlen(others[i])) == 0) {
            return false;
        }
    }
    return true;
}

static int64_t list_slices(struct checkpoint_slice *slices, struct checkpoint_reader *reader,
                           bool weights)
{
    const struct manifest *manifest = checkpoint_contents(reader);
    int64_t count = 0;
    for (int64_t i = 0; i < manifest->tensors; i++) {
        const struct manifest_tensor *tensor = &manifest->tensor[i];
        if (weights && !is_weight(tensor->name)) {
            continue;
        }
        slices[count] = (struct checkpoint_slice){.name = tensor->name,
                                                  .dtype = tensor->dtype,
                                                  .ndim = tensor->ndim,
                                                  .count = manifest_elements(tensor),
                                                  .read = give,
                                                  .context = reader};
        memcpy(slices[count++].shape, tensor->shape, sizeof tensor->shape);
    }
    return count;
}

/* Under `name` in the folder `path`, then renamed; what a failure leaves is removed. */
static enum status write_beside(struct manifest *written, const char *path, const char *name,
                                const char *to, const struct checkpoint_slice *slices,
                                int64_t count)
{
    char beside[2 * FOLDER_PATH_BYTES], message[1024];
    snprintf(beside, sizeof beside, "%s/%s", path, name);
    enum status status = shard_write_whole(written, path, name, slices, count);
    status = status == STATUS_OK ? io_rename(beside, to) : status;
    if (status == STATUS_OK) {
        return io_sync_dir(path);
    }
    snprintf(message, sizeof message, "%s", status_message());
    const enum status ignored = io_remove(beside);
    (void)ignored;
    return status_lines(status, message);
}

static enum status write_file(struct checkpoint_reader *reader, const struct folder *place,
                              bool weights, struct export_h5_figures *figures)
{
    struct manifest written = {0};
    const char *name = strrchr(place->work, '/');
    name = name != NULL ? name + 1 : place->work; /* .tmp-NAME */
    struct checkpoint_slice *slices =
        calloc((size_t)checkpoint_contents(reader)->tensors + 1, sizeof *slices);
    if (slices == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for the table of tensors");
    }
    figures->tensors = list_slices(slices, reader, weights);
    const enum status status =
        write_beside(&written, place->parent, name, place->place, slices, figures->tensors);
    figures->bytes = status == STATUS_OK ? written.file[0].bytes : 0;
    manifest_free(&written);
    free(slices);
    return status;
}

enum status export_h5(const char *path, const char *to, bool weights,
                      struct export_h5_figures *figures)
{
    struct checkpoint_reader *reader = NULL;
    struct folder place;
    *figures = (struct export_h5_figures){0};
    TRY(folder_name(&place, to));
    if (io_exists(to)) {
        return status_fail(STATUS_USAGE, "%s: is there already: name a new file", to);
    }
    TRY(checkpoint_open(&reader, path));
    const enum status status = write_file(reader, &place, weights, figures);
    checkpoint_close(reader);
    return status;
}
