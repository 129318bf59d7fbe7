#include "checkpoints/view.h"

#include <stdlib.h>

#include "checkpoints/blocks.h"
#include "checkpoints/boxes.h"
#include "checkpoints/h5.h"

/* Where pieces of tensors lie, as the view is made. */
struct viewing {
    const struct manifest *manifest;
    int64_t *last; /* [files] owned: the tensor, counted from 1, that a file had a piece of last */
};

/* Maps one piece. A tensor of n dimensions is seen as [all but the last, last] and must be 1-D or
 * 2-D here. */
static bool map_piece(hid_t list, hid_t whole, const struct manifest_tensor *tensor,
                      const struct manifest_piece *piece, const char *file, bool is_first)
{
    struct box boxes[BOXES_OF_PART];
    char dataset[MANIFEST_DATASET_BYTES];
    const struct part part = {piece->first, piece->count, piece->run, piece->stride};
    const int64_t width = tensor->shape[tensor->ndim - 1];
    const int count =
        boxes_of(boxes, &part, tensor->ndim == 1 ? piece->first + piece->count : width);
    hsize_t begin = 0;
    bool good = true;
    manifest_dataset(dataset, tensor->name, piece->first, is_first);
    for (int i = 0; i < count; i++) {
        const struct box box = boxes[i];
        const hsize_t start[2] = {(hsize_t)box.row, (hsize_t)box.column};
        const hsize_t size[2] = {(hsize_t)box.rows, (hsize_t)box.columns};
        const hsize_t elements = size[0] * size[1], all = (hsize_t)piece->count;
        const int skip = tensor->ndim == 1;
        const hid_t source = H5Screate_simple(1, &all, NULL);
        H5Sselect_hyperslab(source, H5S_SELECT_SET, &begin, NULL, &elements, NULL);
        H5Sselect_hyperslab(whole, H5S_SELECT_SET, start + skip, NULL, size + skip, NULL);
        good = H5Pset_virtual(list, whole, file, dataset, source) >= 0 && good;
        H5Sclose(source);
        begin += elements;
    }
    return good;
}

static bool map_tensor(hid_t file, struct viewing *viewing, int64_t index)
{
    const struct manifest_tensor *tensor = &viewing->manifest->tensor[index];
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
        good = map_piece(list, whole, tensor, piece, viewing->manifest->file[piece->file].name,
                         viewing->last[piece->file] != index + 1);
        viewing->last[piece->file] = index + 1;
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

static enum status give(void *context, int64_t begin, void *to, size_t bytes)
{
    h5_image_read(context, begin, to, bytes);
    return STATUS_OK;
}

static enum status map_all(struct h5_image *image, struct viewing *viewing)
{
    hid_t file = -1;
    TRY(h5_create(&file, image));
    bool good = true;
    for (int64_t i = 0; i < viewing->manifest->tensors && good; i++) {
        good = map_tensor(file, viewing, i);
    }
    return h5_finish(file, image, good, "model.h5");
}

static enum status lay_out(struct h5_image *image, const struct manifest *manifest)
{
    struct viewing viewing = {.manifest = manifest,
                              .last = calloc((size_t)manifest->files + 1, sizeof *viewing.last)};
    const enum status status = viewing.last != NULL
                                   ? map_all(image, &viewing)
                                   : status_fail(STATUS_RESOURCE, "out of memory for model.h5");
    free(viewing.last);
    return status;
}

enum status view_write(struct manifest *manifest, const char *path)
{
    struct h5_image image = {0};
    enum status status = lay_out(&image, manifest);
    if (status == STATUS_OK) {
        status = blocks_write(manifest, path, "model.h5", image.bytes, give, &image);
    }
    h5_image_free(&image);
    return status;
}
