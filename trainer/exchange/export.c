#include "trainer/exchange/export.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/safetensors.h"
#include "kernels/base/folder.h"
#include "kernels/base/fp8_rule.h"
#include "kernels/base/small_float.h"
#include "trainer/exchange/huggingface.h"
#include "trainer/exchange/weights.h"
#include "trainer/session.h"
#include "trainer/signals.h"
#include "trainer/state.h"
#include "trainer/step.h"

enum { MAX_PATH = 4096, BLOCK = WEIGHTS_SCALE_BLOCK };
static const float MOST_E4M3 = 448.0F;

enum output_kind { OUTPUT_COPY, OUTPUT_CONVERT, OUTPUT_CODES, OUTPUT_SCALES };

/* How one tensor of the output is made. */
struct output {
    enum output_kind kind;
    char stored[MANIFEST_NAME_BYTES]; /* name in the checkpoint */
    int64_t rows, columns;            /* of the matrix that codes and scales are of */
};

/* One export on its way. */
struct exporter {
    const struct export_options *options;
    char path[MAX_PATH];
    struct folder folder; /* rank 0: what is written */
    struct config config;
    json_t *before; /* config.json of an import, owned; or NULL */
    struct weights weights;
    bool imported;
    bool trained;                      /* in FP8: tiles become codes as they did then */
    struct safetensors_tensor *tensor; /* [count] owned: what is written */
    struct output *output;             /* [count] owned */
    int64_t count;
    enum dtype dtype; /* of most of it, for config.json */
    bool fp8;
    float *strip; /* owned: rows of 128 of a matrix */
    int64_t strip_room, strip_of, strip_index;
    float *scales;     /* owned: of the matrix whose codes were made last, which come first; behind
                          them what values are multiplied by (of a run in FP8) */
    int64_t scales_of; /* index of these codes, -1: none */
};

/* --- contents --- */

/* As the run saw them: from their bf16 copies. */
static void round_strip(struct exporter *export, int64_t count)
{
    for (int64_t i = 0; i < count && export->trained; i++) {
        export->strip[i] = bf16_to_float(bf16_from_float(export->strip[i]));
    }
}

/* Rows [128 * index, ...) of a matrix, in f32, kept until another strip is asked for. */
static enum status load_strip(struct exporter *export, int64_t tensor, int64_t index)
{
    const struct output *output = &export->output[tensor];
    const int64_t first = index * BLOCK,
                  rows = output->rows - first < BLOCK ? output->rows - first : BLOCK;
    if (export->strip_of == tensor && export->strip_index == index) {
        return STATUS_OK;
    }
    if (export->strip_room < BLOCK * output->columns) {
        free(export->strip);
        export->strip_room = BLOCK * output->columns;
        export->strip = malloc((size_t) export->strip_room * sizeof(float));
        if (export->strip == NULL) {
            export->strip_room = 0;
            return status_fail(STATUS_RESOURCE, "out of memory for 128 rows of %s", output->stored);
        }
    }
    export->strip_of = -1;
    TRY(weights_read(&export->weights, output->stored, first * output->columns,
                     rows * output->columns, export->strip));
    round_strip(export, rows * output->columns);
    export->strip_of = tensor;
    export->strip_index = index;
    return STATUS_OK;
}

/* Of a block of the strip. A run in FP8: its own; else amax / 448, and 1 of zeros. */
static struct fp8_scale block_scale(const struct exporter *export, const struct output *output,
                                    int64_t block)
{
    const int64_t rows_left = output->rows - export->strip_index * BLOCK,
                  rows = rows_left < BLOCK ? rows_left : BLOCK, begin = block * BLOCK,
                  end = begin + BLOCK < output->columns ? begin + BLOCK : output->columns;
    float most = 0;
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = begin; c < end; c++) {
            most = fmaxf(most, fabsf(export->strip[r * output->columns + c]));
        }
    }
    if (export->trained) {
        return fp8_scale_of(fp8_bits(most),
                            export->config.fp8.scales == CONFIG_SCALES_POWER_OF_TWO);
    }
    const float scale = most / MOST_E4M3;
    return (struct fp8_scale){.scale = scale > 0 ? scale : 1.0F}; /* below the smallest float too */
}

/* One row of codes of a block, from column `from` to `to` of row `row` of the strip. */
static void make_codes(const struct exporter *export, const struct output *output, int64_t row,
                       int64_t from, int64_t to, struct fp8_scale scale, uint8_t *out)
{
    for (int64_t c = from; c < to; c++) {
        const float x = export->strip[row * output->columns + c];
        out[c - from] = e4m3_from_float(export->trained ? x * scale.inverse : x / scale.scale);
    }
}

static enum status begin_codes(struct exporter *export, int64_t tensor)
{
    const struct output *output = &export->output[tensor];
    const int64_t count = weights_blocks(output->rows) * weights_blocks(output->columns);
    if (export->scales_of == tensor) {
        return STATUS_OK;
    }
    free(export->scales);
    export->scales = malloc(2 * (size_t)count * sizeof(float) + 1);
    export->scales_of = export->scales != NULL ? tensor : -1;
    return export->scales != NULL ? STATUS_OK
                                  : status_fail(STATUS_RESOURCE, "out of memory for scales");
}

static enum status give_codes(struct exporter *export, int64_t tensor, int64_t first, uint8_t *out,
                              int64_t count)
{
    const struct output *output = &export->output[tensor];
    const int64_t across = weights_blocks(output->columns);
    int64_t scaled = -1;
    TRY(begin_codes(export, tensor));
    for (int64_t at = first; at < first + count;) {
        const int64_t row = at / output->columns, strip = row / BLOCK,
                      stop = (row + 1) * output->columns < first + count
                                 ? (row + 1) * output->columns
                                 : first + count;
        TRY(load_strip(export, tensor, strip));
        float *scales = export->scales + strip * across,
              *inverse = scales + weights_blocks(output->rows) * across;
        if (scaled != strip) {
            for (int64_t b = 0; b < across; b++) {
                const struct fp8_scale scale = block_scale(export, output, b);
                scales[b] = scale.scale;
                inverse[b] = scale.inverse;
            }
            scaled = strip;
        }
        while (at < stop) {
            const int64_t column = at - row * output->columns, block = column / BLOCK,
                          border = row * output->columns + (block + 1) * BLOCK,
                          end = border < stop ? border : stop;
            make_codes(export, output, row - strip * BLOCK, column, column + end - at,
                       (struct fp8_scale){.scale = scales[block], .inverse = inverse[block]},
                       out + (at - first));
            at = end;
        }
    }
    return STATUS_OK;
}

static enum status give_scales(struct exporter *export, int64_t tensor, int64_t first, float *out,
                               int64_t count)
{
    const struct output *output = &export->output[tensor];
    const int64_t across = weights_blocks(output->columns);
    if (export->scales_of >= 0 && export->scales_of == tensor - 1) {
        memcpy(out, export->scales + first, (size_t)count * sizeof *out);
        return STATUS_OK; /* the codes are in the same file */
    }
    for (int64_t i = 0; i < count; i++) {
        TRY(load_strip(export, tensor, (first + i) / across));
        out[i] = block_scale(export, output, (first + i) % across).scale;
    }
    return STATUS_OK;
}

static enum status give_converted(struct exporter *export, const struct output *output,
                                  enum dtype dtype, int64_t first, void *data, int64_t count)
{
    enum { PIECE = 1 << 16 };
    uint16_t *out = data;
    float *staging = dtype == DTYPE_F32 ? data : malloc(PIECE * sizeof *staging);
    enum status status =
        staging != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory for a block");
    if (dtype == DTYPE_F32) {
        return weights_read(&export->weights, output->stored, first, count, data);
    }
    for (int64_t done = 0; done < count && status == STATUS_OK; done += PIECE) {
        const int64_t piece = count - done < PIECE ? count - done : PIECE;
        status = weights_read(&export->weights, output->stored, first + done, piece, staging);
        for (int64_t i = 0; i < piece && status == STATUS_OK; i++) {
            out[done + i] = bf16_from_float(staging[i]);
        }
    }
    free(staging);
    return status;
}

/* Blocks of the writer start and end between elements: 4 MiB is a multiple of every width. */
static enum status give(void *context, int64_t index, int64_t first, void *data, size_t bytes)
{
    struct exporter *export = context;
    const struct output *output = &export->output[index];
    const int64_t width = (int64_t)dtype_bytes(export->tensor[index].dtype);
    const int64_t from = first / width, count = (int64_t)bytes / width;
    TRY(signals_check());
    if (output->kind == OUTPUT_COPY) {
        return checkpoint_read(export->weights.reader, output->stored, from, count, data);
    }
    if (output->kind == OUTPUT_CONVERT) {
        return give_converted(export, output, export->tensor[index].dtype, from, data, count);
    }
    if (output->kind == OUTPUT_SCALES) {
        return give_scales(export, index, from, data, count);
    }
    return give_codes(export, index, from, data, count);
}

/* --- what is written --- */

/* The dtype that a tensor is written in, given what the checkpoint has. */
static enum dtype target(const struct exporter *export, const struct hf_tensor *tensor,
                         enum dtype stored)
{
    if (tensor->kind == HF_BIAS) {
        return export->options->dtype == EXPORT_KEEP ? stored : DTYPE_F32;
    }
    switch (export->options->dtype) {
    case EXPORT_KEEP:
        return export->imported && !export->options->ema ? stored : DTYPE_BF16;
    case EXPORT_F32:
        return DTYPE_F32;
    case EXPORT_FP8:
        return tensor->kind == HF_LINEAR ? DTYPE_E4M3 : DTYPE_BF16;
    default:
        return DTYPE_BF16;
    }
}

/* The best of what the checkpoint has under this name: the average when asked for, the weight
 * itself when it is what is wanted, else the f32 master. */
static const struct manifest_tensor *choose(const struct exporter *export,
                                            const struct hf_tensor *tensor, enum dtype *dtype)
{
    char name[MANIFEST_NAME_BYTES + 16];
    const struct manifest_tensor *plain = weights_find(&export->weights, tensor->name);
    if (plain == NULL) {
        return NULL;
    }
    *dtype = target(export, tensor, plain->dtype);
    if (tensor->kind == HF_BIAS) {
        return plain;
    }
    snprintf(name, sizeof name, "ema/%s", tensor->name);
    const struct manifest_tensor *ema = weights_find(&export->weights, name);
    if (export->options->ema && ema != NULL) {
        return ema;
    }
    snprintf(name, sizeof name, "master/%s", tensor->name);
    const struct manifest_tensor *master = weights_find(&export->weights, name);
    return plain->dtype == *dtype || master == NULL ? plain : master;
}

static struct output *add(struct exporter *export, const char *name, enum dtype dtype,
                          const struct manifest_tensor *from)
{
    struct safetensors_tensor *tensor = &export->tensor[export->count];
    struct output *output = &export->output[export->count++];
    *tensor = (struct safetensors_tensor){.dtype = dtype, .ndim = from->ndim};
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
    memcpy(tensor->shape, from->shape, sizeof tensor->shape);
    *output = (struct output){
        .kind = from->dtype == dtype ? OUTPUT_COPY : OUTPUT_CONVERT,
        .rows = from->shape[0],
        .columns = from->shape[1],
    };
    snprintf(output->stored, sizeof output->stored, "%s", from->name);
    return output;
}

/* float8 codes and their scales: as they are stored, or made. */
static enum status add_float8(struct exporter *export, const char *name,
                              const struct manifest_tensor *from)
{
    char scale[HF_NAME_BYTES + sizeof WEIGHTS_SCALE_SUFFIX];
    struct manifest_tensor like = *from;
    snprintf(scale, sizeof scale, "%s" WEIGHTS_SCALE_SUFFIX, name);
    export->fp8 = true;
    struct output *codes = add(export, name, DTYPE_E4M3, from);
    if (codes->kind == OUTPUT_COPY) {
        const struct manifest_tensor *stored = weights_find(&export->weights, scale);
        if (stored == NULL) {
            return status_fail(STATUS_DATA, "%s: tensor %s is missing", export->path, scale);
        }
        add(export, scale, stored->dtype, stored);
        return STATUS_OK;
    }
    codes->kind = OUTPUT_CODES;
    like.shape[0] = weights_blocks(from->shape[0]);
    like.shape[1] = weights_blocks(from->shape[1]);
    struct output *scales = add(export, scale, DTYPE_F32, &like);
    scales->kind = OUTPUT_SCALES;
    scales->rows = from->shape[0];
    scales->columns = from->shape[1];
    return STATUS_OK;
}

static enum status add_tensor(struct exporter *export, const struct hf_tensor *tensor,
                              const char *name)
{
    enum dtype dtype = DTYPE_F32;
    const struct manifest_tensor *from = choose(export, tensor, &dtype);
    if (from == NULL) {
        return status_fail(STATUS_MISMATCH, "%s: tensor %s is missing", export->path, tensor->name);
    }
    if (from->ndim != tensor->ndim ||
        memcmp(from->shape, tensor->shape, (size_t)from->ndim * sizeof from->shape[0]) != 0) {
        return status_fail(STATUS_MISMATCH, "%s: tensor %s has not the shape its config says",
                           export->path, from->name);
    }
    if (dtype == DTYPE_E4M3) {
        return add_float8(export, name, from);
    }
    add(export, name, dtype, from);
    return STATUS_OK;
}

/* Modules of multi-token prediction hold copies of the embedding and the head. */
static enum status add_copies(struct exporter *export, const struct hf_tensors *tensors)
{
    const int64_t layers = export->config.model.num_hidden_layers,
                  depth = export->config.model.num_nextn_predict_layers;
    char name[HF_NAME_BYTES];
    for (int64_t l = layers; l < layers + depth; l++) {
        for (int64_t i = 0; i < tensors->count; i++) {
            const struct hf_tensor *tensor = &tensors->tensor[i];
            const bool head = strcmp(tensor->name, "lm_head.weight") == 0;
            if (!head && strcmp(tensor->name, "model.embed_tokens.weight") != 0) {
                continue;
            }
            snprintf(name, sizeof name, "model.layers.%lld.%s.weight", (long long)l,
                     head ? "shared_head.head" : "embed_tokens");
            TRY(add_tensor(export, tensor, name));
        }
    }
    return STATUS_OK;
}

/* The first dtype that is neither float8 nor that of its scales speaks for all the rest. */
static enum dtype other_dtype(const struct exporter *export)
{
    for (int64_t i = 0; i < export->count; i++) {
        if (export->tensor[i].dtype == DTYPE_E4M3) {
            i++; /* its scales follow */
        } else {
            return export->tensor[i].dtype;
        }
    }
    return DTYPE_F32;
}

static enum status list_outputs(struct exporter *export)
{
    struct hf_tensors tensors = {0};
    TRY(hf_tensors_init(&tensors, &export->config));
    const size_t most =
        2 * (size_t)tensors.count + 2 * (size_t) export->config.model.num_nextn_predict_layers;
    export->tensor = calloc(most + 1, sizeof *export->tensor);
    export->output = calloc(most + 1, sizeof *export->output);
    enum status status = export->tensor != NULL && export->output != NULL
                             ? STATUS_OK
                             : status_fail(STATUS_RESOURCE, "out of memory for a table of tensors");
    for (int64_t i = 0; i < tensors.count && status == STATUS_OK; i++) {
        status = add_tensor(export, &tensors.tensor[i], tensors.tensor[i].name);
    }
    status = status == STATUS_OK ? add_copies(export, &tensors) : status;
    hf_tensors_free(&tensors);
    export->dtype = other_dtype(export);
    return status;
}

/* --- the checkpoint --- */

static enum status read_state(struct exporter *export)
{
    char *text = NULL;
    TRY(session_saved_config(&export->config, export->path));
    TRY(checkpoint_state(export->path, &text));
    json_t *json = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    free(text);
    export->before = json_incref(json_object_get(json, "huggingface"));
    json_decref(json);
    return STATUS_OK;
}

static bool has_prefix(const struct manifest *manifest, const char *prefix)
{
    for (int64_t i = 0; i < manifest->tensors; i++) {
        if (strncmp(manifest->tensor[i].name, prefix, strlen(prefix)) == 0) {
            return true;
        }
    }
    return false;
}

static enum status open_checkpoint(struct exporter *export)
{
    TRY(read_state(export));
    TRY(weights_open(&export->weights, export->path));
    const struct manifest *contents = checkpoint_contents(export->weights.reader);
    export->trained = export->config.train.precision == CONFIG_FP8;
    export->imported = !has_prefix(contents, "master/") && !has_prefix(contents, "moment1/");
    if (export->options->ema && !has_prefix(contents, "ema/")) {
        return status_fail(STATUS_MISMATCH,
                           "%s: no averaged weights in it: it was trained with optimizer.ema 0",
                           export->path);
    }
    return list_outputs(export);
}

/* --- the folder --- */

static enum status finish(struct exporter *export)
{
    char name[MAX_PATH + 32], *text = NULL;
    TRY(hf_config_text(&export->config, export->dtype, export->fp8, export->before, &text));
    snprintf(name, sizeof name, "%s/config.json", export->folder.work);
    const enum status status = io_write_file(name, text, strlen(text));
    free(text);
    TRY(status);
    return folder_publish(&export->folder);
}

/* A full disk is better found before than in the middle of an export. */
static enum status begin(struct exporter *export)
{
    int64_t bytes = 0, room = 0;
    for (int64_t i = 0; i < export->count; i++) {
        const struct safetensors_tensor *tensor = &export->tensor[i];
        int64_t own = (int64_t)dtype_bytes(tensor->dtype);
        for (int d = 0; d < tensor->ndim; d++) {
            own *= tensor->shape[d];
        }
        bytes += own;
    }
    TRY(folder_begin(&export->folder));
    TRY(io_free_bytes(export->folder.work, &room));
    return room >= bytes ? STATUS_OK
                         : status_fail(STATUS_IO,
                                       "%s: the model needs %lld MiB, %lld MiB are free: free "
                                       "space or name a folder elsewhere",
                                       export->folder.place, (long long)(bytes >> 20),
                                       (long long)(room >> 20));
}

static enum status write_all(struct exporter *export, struct comm *world,
                             struct export_figures *figures)
{
    struct safetensors_figures written = {0};
    const bool main_rank = world->rank == 0;
    enum status status = comm_agree(world, main_rank ? begin(export) : STATUS_OK, NULL);
    if (status == STATUS_OK) {
        comm_broadcast(world, export->folder.work, sizeof export->folder.work, 0);
        status = safetensors_save(world, export->folder.work, export->tensor, export->count,
                                  export->options->shard_bytes, give, export, &written);
    }
    if (status == STATUS_OK) {
        status = comm_agree(world, main_rank ? finish(export) : STATUS_OK, NULL);
    }
    figures->tensors = export->count;
    figures->shards = written.shards;
    figures->bytes = written.bytes;
    folder_drop(&export->folder);
    return status;
}

static void close_export(struct exporter *export)
{
    weights_close(&export->weights);
    config_free(&export->config);
    json_decref(export->before);
    free(export->tensor);
    free(export->output);
    free(export->strip);
    free(export->scales);
}

static enum status export_checkpoint(struct comm *world, const struct export_options *options,
                                     const char *path, struct export_figures *figures)
{
    struct exporter *export = calloc(1, sizeof *export);
    TRY(comm_agree(
        world, export != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory"), NULL));
    export->options = options;
    export->strip_of = export->scales_of = -1;
    snprintf(export->path, sizeof export->path, "%s", path);
    config_init(&export->config);
    enum status status = comm_agree(world, folder_name(&export->folder, options->to), NULL);
    status = status == STATUS_OK ? comm_agree(world, open_checkpoint(export), NULL) : status;
    status = status == STATUS_OK ? write_all(export, world, figures) : status;
    close_export(export);
    free(export);
    return status;
}

struct request {
    struct comm *world;
    const struct export_options *options;
    struct export_figures *figures;
};

static enum status export_one(void *context, const char *checkpoint)
{
    const struct request *request = context;
    return export_checkpoint(request->world, request->options, checkpoint, request->figures);
}

enum status export_run(struct comm *world, const struct export_options *options,
                       struct export_figures *figures)
{
    struct request request = {.world = world, .options = options, .figures = figures};
    const double start = step_clock();
    *figures = (struct export_figures){0};
    const enum status status = state_use_newest(world, options->from, export_one, &request);
    figures->seconds = step_clock() - start;
    return status;
}
