#include "trainer/exchange/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/small_float.h"
#include "trainer/exchange/huggingface.h"

enum { STAGED = 1 << 18, SHAPE_TEXT = 96 }; /* elements converted at a time */

enum status weights_open(struct weights *weights, const char *path)
{
    *weights = (struct weights){.path = path,
                                .staging = malloc(STAGED * sizeof(float)),
                                .wide = malloc(STAGED * sizeof(float))};
    if (weights->staging == NULL || weights->wide == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for reading weights");
    }
    return checkpoint_open(&weights->reader, path);
}

void weights_close(struct weights *weights)
{
    checkpoint_close(weights->reader);
    free(weights->scales);
    free(weights->staging);
    free(weights->wide);
    *weights = (struct weights){0};
}

const struct manifest_tensor *weights_find(const struct weights *weights, const char *name)
{
    return manifest_find(checkpoint_contents(weights->reader), name);
}

int64_t weights_blocks(int64_t size)
{
    return (size + WEIGHTS_SCALE_BLOCK - 1) / WEIGHTS_SCALE_BLOCK;
}

static enum status bad_scales(const struct weights *weights, const char *name)
{
    return status_fail(
        STATUS_DATA,
        "%s: tensor %s holds float8 codes, and there is no float32 " WEIGHTS_SCALE_SUFFIX
        " of a scale per 128 x 128 block beside it",
        weights->path, name);
}

/* The scales of a float8 matrix, into weights->scales. */
static enum status load_scales(struct weights *weights, const struct manifest_tensor *tensor)
{
    char name[MANIFEST_NAME_BYTES + sizeof WEIGHTS_SCALE_SUFFIX];
    if (strcmp(weights->scaled, tensor->name) == 0) {
        return STATUS_OK;
    }
    snprintf(name, sizeof name, "%s%s", tensor->name, WEIGHTS_SCALE_SUFFIX);
    const struct manifest_tensor *scale = weights_find(weights, name);
    if (tensor->ndim != 2 || scale == NULL || scale->dtype != DTYPE_F32 || scale->ndim != 2 ||
        scale->shape[0] != weights_blocks(tensor->shape[0]) ||
        scale->shape[1] != weights_blocks(tensor->shape[1])) {
        return bad_scales(weights, tensor->name);
    }
    const int64_t count = scale->shape[0] * scale->shape[1];
    free(weights->scales);
    weights->scaled[0] = '\0';
    weights->scales = malloc((size_t)count * sizeof(float) + 1);
    if (weights->scales == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for the scales of %s", tensor->name);
    }
    TRY(checkpoint_read(weights->reader, name, 0, count, weights->scales));
    snprintf(weights->scaled, sizeof weights->scaled, "%s", tensor->name);
    return STATUS_OK;
}

static void widen_codes(const struct weights *weights, const struct manifest_tensor *tensor,
                        int64_t first, int64_t count, float *to)
{
    const uint8_t *codes = weights->staging;
    const int64_t width = tensor->shape[1], across = weights_blocks(width);
    int64_t row = first / width, column = first % width;
    for (int64_t i = 0; i < count; i++) {
        const float scale =
            weights->scales[row / WEIGHTS_SCALE_BLOCK * across + column / WEIGHTS_SCALE_BLOCK];
        to[i] = e4m3_to_float(codes[i]) * scale;
        if (++column == width) {
            column = 0;
            row++;
        }
    }
}

static void widen_halves(const struct weights *weights, enum dtype dtype, int64_t count, float *to)
{
    const uint16_t *bits = weights->staging;
    for (int64_t i = 0; i < count; i++) {
        to[i] = dtype == DTYPE_BF16 ? bf16_to_float(bits[i]) : f16_to_float(bits[i]);
    }
}

static enum status read_block(struct weights *weights, const struct manifest_tensor *tensor,
                              int64_t first, int64_t count, float *to)
{
    TRY(checkpoint_read(weights->reader, tensor->name, first, count, weights->staging));
    if (tensor->dtype == DTYPE_E4M3) {
        widen_codes(weights, tensor, first, count, to);
    } else {
        widen_halves(weights, tensor->dtype, count, to);
    }
    return STATUS_OK;
}

enum status weights_read(struct weights *weights, const char *name, int64_t first, int64_t count,
                         float *to)
{
    const struct manifest_tensor *tensor = weights_find(weights, name);
    if (tensor == NULL || tensor->dtype == DTYPE_F32) {
        return checkpoint_read(weights->reader, name, first, count, to);
    }
    if (tensor->dtype != DTYPE_BF16 && tensor->dtype != DTYPE_F16 && tensor->dtype != DTYPE_E4M3) {
        return status_fail(STATUS_DATA, "%s: tensor %s is %s: not a weight's dtype", weights->path,
                           name, dtype_name(tensor->dtype));
    }
    if (tensor->dtype == DTYPE_E4M3) {
        TRY(load_scales(weights, tensor));
    }
    for (int64_t done = 0; done < count; done += STAGED) {
        const int64_t left = count - done, piece = left < STAGED ? left : STAGED;
        TRY(read_block(weights, tensor, first + done, piece, to + done));
    }
    return STATUS_OK;
}

static void shape_text(char out[SHAPE_TEXT], const int64_t *shape, int ndim)
{
    int used = snprintf(out, SHAPE_TEXT, "[");
    for (int i = 0; i < ndim; i++) {
        used += snprintf(out + used, (size_t)(SHAPE_TEXT - used), "%s%lld", i > 0 ? ", " : "",
                         (long long)shape[i]);
    }
    snprintf(out + used, (size_t)(SHAPE_TEXT - used), "]");
}

/* The tensors with a row per token of the vocabulary. */
static bool has_vocabulary(const char *name)
{
    return strcmp(name, "model.embed_tokens.weight") == 0 || strcmp(name, "lm_head.weight") == 0;
}

static enum status check_shape(const struct weights *weights, const struct manifest_tensor *tensor,
                               const struct checkpoint_slice *slice, bool resize_vocab)
{
    char stored[SHAPE_TEXT], wanted[SHAPE_TEXT];
    if (tensor->ndim == slice->ndim &&
        memcmp(tensor->shape, slice->shape, (size_t)slice->ndim * sizeof slice->shape[0]) == 0) {
        return STATUS_OK;
    }
    const bool rows_only =
        has_vocabulary(slice->name) && tensor->ndim == 2 && tensor->shape[1] == slice->shape[1];
    if (rows_only && resize_vocab) {
        return STATUS_OK;
    }
    shape_text(stored, tensor->shape, tensor->ndim);
    shape_text(wanted, slice->shape, slice->ndim);
    return status_fail(STATUS_MISMATCH, "%s: tensor %s is %s %s, this model has %s: %s",
                       weights->path, tensor->name, dtype_name(tensor->dtype), stored, wanted,
                       rows_only ? "another vocabulary; checkpoint.resize_vocab: true keeps the "
                                   "rows in common"
                                 : "a checkpoint of another model");
}

/* The same for a slice, whose memory may be a device's. */
static enum status read_slice(struct weights *weights, const char *name,
                              const struct checkpoint_slice *slice, int64_t count)
{
    if (slice->write == NULL) {
        return weights_read(weights, name, slice->first, count, slice->data);
    }
    for (int64_t done = 0; done < count; done += STAGED) {
        const int64_t left = count - done, piece = left < STAGED ? left : STAGED;
        TRY(weights_read(weights, name, slice->first + done, piece, weights->wide));
        slice->write(slice, (float *)slice->data + done, weights->wide,
                     (size_t)piece * sizeof(float));
    }
    return STATUS_OK;
}

/* What there is of a slice that is all in one. */
static enum status load_run(struct weights *weights, const struct manifest_tensor *tensor,
                            const struct checkpoint_slice *slice)
{
    const int64_t stored = manifest_elements(tensor), last = slice->first + slice->count,
                  end = last < stored ? last : stored;
    return end > slice->first ? read_slice(weights, tensor->name, slice, end - slice->first)
                              : STATUS_OK;
}

enum status weights_load(struct weights *weights, const struct checkpoint_slice *slice,
                         bool resize_vocab)
{
    char name[MANIFEST_NAME_BYTES + sizeof "master/"];
    snprintf(name, sizeof name, "master/%s", slice->name);
    const struct manifest_tensor *tensor = weights_find(weights, name);
    tensor = tensor != NULL ? tensor : weights_find(weights, slice->name);
    if (tensor == NULL) {
        return status_fail(STATUS_MISMATCH,
                           "%s: tensor %s is missing: a checkpoint of another model", weights->path,
                           slice->name);
    }
    TRY(check_shape(weights, tensor, slice, resize_vocab));
    const int64_t run = slice->run > 0 ? slice->run : slice->count;
    for (int64_t done = 0; done < slice->count; done += run) {
        struct checkpoint_slice one = *slice;
        one.first = slice->first + done / run * slice->stride;
        one.count = run;
        one.run = one.stride = 0;
        one.data = (float *)slice->data + done;
        TRY(load_run(weights, tensor, &one));
    }
    return STATUS_OK;
}

/* --- of which model --- */

static bool is_parameter(const char *name)
{
    static const char scale[] = WEIGHTS_SCALE_SUFFIX;
    const size_t length = strlen(name), tail = sizeof scale - 1;
    return strchr(name, '/') == NULL && (length < tail || strcmp(name + length - tail, scale) != 0);
}

/* known: [manifest->tensors], zeroed. */
static enum status find_unknown(const char *path, const struct manifest *manifest,
                                const struct hf_tensors *tensors, bool *known)
{
    const char *first = NULL;
    int64_t unknown = 0;
    for (int64_t i = 0; i < tensors->count; i++) {
        const struct manifest_tensor *found = manifest_find(manifest, tensors->tensor[i].name);
        if (found != NULL) {
            known[found - manifest->tensor] = true;
        }
    }
    for (int64_t i = 0; i < manifest->tensors; i++) {
        const char *name = manifest->tensor[i].name;
        if (!known[i] && is_parameter(name)) {
            first = first != NULL ? first : name;
            unknown++;
        }
    }
    return unknown == 0 ? STATUS_OK
                        : status_fail(STATUS_MISMATCH,
                                      "%s: has %lld tensor%s that the model has not, the first %s: "
                                      "a checkpoint of another model",
                                      path, (long long)unknown, unknown == 1 ? "" : "s", first);
}

enum status weights_check_model(const char *path, const struct config *config)
{
    struct manifest manifest;
    struct hf_tensors tensors = {0};
    TRY(manifest_read(&manifest, path));
    bool *known = calloc((size_t)manifest.tensors + 1, sizeof *known);
    enum status status =
        known != NULL ? hf_tensors_init(&tensors, config)
                      : status_fail(STATUS_RESOURCE, "out of memory for the table of tensors");
    if (status == STATUS_OK) {
        status = find_unknown(path, &manifest, &tensors, known);
    }
    hf_tensors_free(&tensors);
    manifest_free(&manifest);
    free(known);
    return status;
}
