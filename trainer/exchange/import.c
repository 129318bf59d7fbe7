#include "trainer/exchange/import.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/rng.h"
#include "kernels/base/small_float.h"
#include "trainer/exchange/import_plan.h"
#include "trainer/step.h"

enum { MAX_PATH = 4096 };

/* --- values on their way --- */

static bool ends_badly(const unsigned char *value, enum dtype dtype)
{
    uint32_t word = 0;
    switch (dtype) {
    case DTYPE_F32:
        memcpy(&word, value, sizeof word);
        return (word & 0x7f800000u) == 0x7f800000u;
    case DTYPE_BF16:
        return ((uint32_t)value[1] << 8 & 0x7f00u) == 0x7f00u && (value[0] & 0x80u) != 0;
    case DTYPE_F16:
        return (value[1] & 0x7cu) == 0x7cu;
    default:
        return (value[0] & 0x7fu) == 0x7fu;
    }
}

/* Counts what is not finite in bytes [offset, offset + bytes) of a part. Blocks may cut through a
 * value: its first bytes wait in `carry`. */
static void count_bad(struct part *part, int64_t offset, const unsigned char *data, size_t bytes)
{
    const size_t width = dtype_bytes(part->dtype), into = (size_t)(offset % (int64_t)width);
    size_t at = 0;
    if (into > 0) {
        at = width - into < bytes ? width - into : bytes;
        memcpy(part->carry + into, data, at);
        part->bad += into + at == width && ends_badly(part->carry, part->dtype);
    }
    for (; at + width <= bytes; at += width) {
        part->bad += ends_badly(data + at, part->dtype);
    }
    if (at < bytes) {
        memcpy(part->carry, data + at, bytes - at);
    }
}

static enum status check_finite(struct part *part, int64_t offset, const void *data, size_t bytes)
{
    count_bad(part, offset, data, bytes);
    if (part->bad == 0 || offset + (int64_t)bytes < import_part_bytes(part)) {
        return STATUS_OK;
    }
    return status_fail(STATUS_DATA,
                       "%s: tensor %s: %lld of %lld values are NaN or infinite: a broken model",
                       part->plan->options->from, part->name, (long long)part->bad,
                       (long long)(import_part_bytes(part) / (int64_t)dtype_bytes(part->dtype)));
}

/* The same bytes of every copy that a module of multi-token prediction holds. */
static enum status compare_copies(struct part *part, int64_t offset, const char *data, size_t bytes)
{
    struct import_plan *plan = part->plan;
    for (int64_t i = 0; i < plan->source.tensors; i++) {
        const struct safetensors_tensor *copy = &plan->source.tensor[i];
        const char *of = hf_copied_from(copy->name, plan->config.model.num_hidden_layers);
        if (of == NULL || strcmp(of, part->name) != 0) {
            continue;
        }
        for (size_t done = 0; done < bytes; done += IMPORT_SCRATCH_BYTES) {
            const size_t left = bytes - done,
                         piece = left < IMPORT_SCRATCH_BYTES ? left : IMPORT_SCRATCH_BYTES;
            TRY(safetensors_read(&plan->source, copy, offset + (int64_t)done, plan->scratch,
                                 piece));
            if (memcmp(plan->scratch, data + done, piece) != 0) {
                return status_fail(STATUS_DATA,
                                   "%s: tensor %s differs from %s, whose copy it must be: this "
                                   "program shares them",
                                   plan->options->from, copy->name, part->name);
            }
        }
    }
    return STATUS_OK;
}

static float widen(const char *value, enum dtype dtype)
{
    uint16_t half = 0;
    float wide = 0;
    if (dtype == DTYPE_F32) {
        memcpy(&wide, value, sizeof wide);
        return wide;
    }
    memcpy(&half, value, sizeof half);
    return dtype == DTYPE_BF16 ? bf16_to_float(half) : f16_to_float(half);
}

static void narrow(char *to, float value, enum dtype dtype)
{
    if (dtype == DTYPE_F32) {
        memcpy(to, &value, sizeof value);
        return;
    }
    const uint16_t half = dtype == DTYPE_BF16 ? bf16_from_float(value) : f16_from_float(value);
    memcpy(to, &half, sizeof half);
}

/* Elements [first, first + count) of one row of a part that is made of columns. */
static enum status make_columns(struct part *part, int64_t first, int64_t count, char *to)
{
    const int64_t width = (int64_t)dtype_bytes(part->dtype), across = part->shape[1];
    const int64_t row = first / across, column = first % across;
    TRY(safetensors_read(&part->plan->source, part->from,
                         (row * part->from->shape[1] + part->column + column) * width, to,
                         (size_t)(count * width)));
    for (int64_t i = 0; i < count && part->factor != 1.0F; i++) {
        narrow(to + i * width, part->factor * widen(to + i * width, part->dtype), part->dtype);
    }
    return STATUS_OK;
}

static void make_normal(const struct part *part, int64_t first, int64_t count, char *to)
{
    const int64_t width = (int64_t)dtype_bytes(part->dtype), across = part->shape[1];
    const int64_t row = first / across / part->group, column = first % across;
    for (int64_t i = 0; i < count; i++) {
        const double value = rng_normal(part->key, (uint64_t)(row * across + column + i));
        narrow(to + i * width, part->factor * (float)value, part->dtype);
    }
}

/* Whole elements around the bytes that are wanted, row by row, through the scratch. */
static enum status make(struct part *part, int64_t offset, char *to, size_t bytes)
{
    const int64_t width = (int64_t)dtype_bytes(part->dtype), end = offset + (int64_t)bytes;
    const int64_t room = (int64_t)IMPORT_SCRATCH_BYTES / width, across = part->shape[1];
    for (int64_t at = offset; at < end;) {
        const int64_t first = at / width, most = across - first % across,
                      wanted = (end - first * width + width - 1) / width;
        int64_t count = wanted < most ? wanted : most;
        count = count < room ? count : room;
        if (part->kind == PART_COLUMNS) {
            TRY(make_columns(part, first, count, part->plan->scratch));
        } else {
            make_normal(part, first, count, part->plan->scratch);
        }
        const int64_t stop = (first + count) * width < end ? (first + count) * width : end;
        memcpy(to + (at - offset), part->plan->scratch + (at - first * width), (size_t)(stop - at));
        at = stop;
    }
    return STATUS_OK;
}

static enum status read_part(const struct checkpoint_slice *slice, int64_t offset, void *to,
                             size_t bytes)
{
    struct part *part = slice->context;
    if (part->kind != PART_BYTES) {
        TRY(make(part, offset, to, bytes));
    } else {
        TRY(safetensors_read(&part->plan->source, part->from, part->first + offset, to, bytes));
    }
    TRY(check_finite(part, offset, to, bytes));
    return part->copied ? compare_copies(part, offset, to, bytes) : STATUS_OK;
}

/* --- the checkpoint --- */

/* This rank's share: whole tensors, about the same number of bytes for every rank. */
static int64_t share_out(struct import_plan *plan, const struct comm *world,
                         struct checkpoint_slice *slices, int64_t *total)
{
    int64_t count = 0, before = 0;
    *total = 0;
    for (int64_t i = 0; i < plan->parts; i++) {
        *total += import_part_bytes(&plan->part[i]);
    }
    for (int64_t i = 0; i < plan->parts; i++) {
        struct part *part = &plan->part[i];
        const int64_t bytes = import_part_bytes(part);
        const double middle = ((double)before + (double)bytes / 2) / (double)*total;
        before += bytes;
        if ((int)(middle * world->size) != world->rank) {
            continue;
        }
        struct checkpoint_slice *slice = &slices[count++];
        *slice = (struct checkpoint_slice){.name = part->name,
                                           .dtype = part->dtype,
                                           .ndim = part->ndim,
                                           .count = bytes / (int64_t)dtype_bytes(part->dtype),
                                           .read = read_part,
                                           .context = part};
        memcpy(slice->shape, part->shape, sizeof slice->shape);
    }
    return count;
}

static char *state_text(const struct import_plan *plan, int ranks)
{
    char *config = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&config, &bytes);
    if (out == NULL) {
        return NULL;
    }
    config_print(&plan->config, out);
    fclose(out);
    json_t *json = json_pack("{s:i, s:i, s:i, s:s, s:O}", "step", 0, "position", 0, "ranks", ranks,
                             "config", config, "huggingface", plan->json);
    char *text = json != NULL ? json_dumps(json, JSON_INDENT(1) | JSON_SORT_KEYS) : NULL;
    json_decref(json);
    free(config);
    return text;
}

static enum status write_checkpoint(struct import_plan *plan, struct comm *world,
                                    struct import_figures *figures)
{
    struct checkpoint_slice *slices = calloc((size_t)plan->parts + 1, sizeof *slices);
    char *text = state_text(plan, world->size);
    enum status status = slices != NULL && text != NULL
                             ? STATUS_OK
                             : status_fail(STATUS_RESOURCE, "out of memory for the checkpoint");
    status = comm_agree(world, status, NULL);
    if (status == STATUS_OK) {
        const int64_t count = share_out(plan, world, slices, &figures->bytes);
        figures->tensors = plan->parts;
        status = checkpoint_write(world, plan->options->to, 0, text, slices, count);
    }
    free(slices);
    free(text);
    return status;
}

/* --- the plan --- */

static enum status load_json(struct import_plan *plan)
{
    char path[MAX_PATH];
    json_error_t problem;
    const char *from = plan->options->from;
    if (!io_exists(from)) {
        return status_fail(STATUS_IO, "%s: no such folder", from);
    }
    if (snprintf(path, sizeof path, "%s/config.json", from) >= MAX_PATH || !io_exists(path)) {
        return status_fail(STATUS_DATA, "%s: no config.json in it: not a model folder", from);
    }
    plan->json = json_load_file(path, JSON_REJECT_DUPLICATES, &problem);
    if (!json_is_object(plan->json)) {
        return status_fail(STATUS_DATA, "%s: line %d: %s", path,
                           plan->json == NULL ? problem.line : 1,
                           plan->json == NULL ? problem.text : "not an object");
    }
    return STATUS_OK;
}

/* Weights that were quantised otherwise than in blocks of float8 are not weights to us. */
static enum status check_quantization(const struct import_plan *plan)
{
    const json_t *how = json_object_get(plan->json, "quantization_config"),
                 *block = json_object_get(how, "weight_block_size");
    const char *method = json_string_value(json_object_get(how, "quant_method")),
               *format = json_string_value(json_object_get(how, "fmt"));
    if (how == NULL || json_is_null(how)) {
        return STATUS_OK;
    }
    if (method == NULL || strcmp(method, "fp8") != 0 ||
        (format != NULL && strcmp(format, "e4m3") != 0)) {
        return status_fail(STATUS_DATA,
                           "%s/config.json: quantization_config is %s %s: this program reads fp8 "
                           "e4m3 only",
                           plan->options->from, method != NULL ? method : "(no quant_method)",
                           format != NULL ? format : "");
    }
    if (json_array_size(block) != 2 || json_integer_value(json_array_get(block, 0)) != 128 ||
        json_integer_value(json_array_get(block, 1)) != 128) {
        return status_fail(STATUS_DATA,
                           "%s/config.json: quantization_config.weight_block_size is not "
                           "[128, 128]",
                           plan->options->from);
    }
    return STATUS_OK;
}

static enum status parse_config(struct import_plan *plan, const char *text)
{
    const struct import_options *options = plan->options;
    TRY(config_parse(&plan->config, options->from, text, strlen(text)));
    TRY(config_override(&plan->config, options->overrides, options->override_count));
    free(plan->config.model.hf_config); /* the checkpoint stands alone: all keys are resolved */
    plan->config.model.hf_config = NULL;
    return STATUS_OK;
}

/* The config that training and generating with these weights starts from. */
static enum status resolve_config(struct import_plan *plan)
{
    char text[2 * MAX_PATH];
    const json_t *longest = json_object_get(plan->json, "max_position_embeddings");
    const json_t *new_dtype = json_object_get(plan->json, "dtype");
    const char *dtype = json_string_value(
        new_dtype != NULL ? new_dtype : json_object_get(plan->json, "torch_dtype"));
    json_t *path = json_string(plan->options->from);
    char *quoted = json_dumps(path, JSON_ENCODE_ANY);
    json_decref(path);
    if (quoted == NULL) {
        return status_fail(STATUS_USAGE, "%s: a folder's name must be UTF-8", plan->options->from);
    }
    int used = snprintf(text, sizeof text, "model: {hf_config: %s}\ntrain:\n  precision: %s\n",
                        quoted, dtype != NULL && strcmp(dtype, "float32") == 0 ? "fp32" : "bf16");
    free(quoted);
    if (json_integer_value(longest) > 0 &&
        json_integer_value(longest) < plan->config.train.sequence_length) {
        used += snprintf(text + used, sizeof text - (size_t)used, "  sequence_length: %lld\n",
                         (long long)json_integer_value(longest));
    }
    return (size_t)used < sizeof text
               ? parse_config(plan, text)
               : status_fail(STATUS_USAGE, "path too long: %s", plan->options->from);
}

/* `format` takes the folder and the number. */
static enum status make_note(struct import_plan *plan, const char *format, long long number)
{
    char line[512];
    snprintf(line, sizeof line, format, plan->options->from, number);
    free(plan->note);
    plan->note = strdup(line);
    return plan->note != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory");
}

/* Whether the command line itself says that there be no multi-token prediction. */
static bool asked_for_none(const struct import_options *options)
{
    static const char word[] = "model.num_nextn_predict_layers=0";
    bool asked = false;
    for (int i = 0; i < options->override_count; i++) {
        asked = asked || strcmp(options->overrides[i], word) == 0;
    }
    return asked;
}

/* Modules of multi-token prediction in the weights, and config.json silent about them. */
static enum status leave_out(struct import_plan *plan, int64_t found)
{
    const int64_t layers = plan->config.model.num_hidden_layers;
    if (!asked_for_none(plan->options)) {
        return status_fail(STATUS_DATA,
                           "%s: %lld tensors of layer %lld and beyond (multi-token prediction), "
                           "but num_nextn_predict_layers is 0: import with "
                           "model.num_nextn_predict_layers=1, or =0 to leave them out",
                           plan->options->from, (long long)found, (long long)layers);
    }
    for (int64_t i = 0; i < plan->source.tensors; i++) {
        plan->used[i] = plan->used[i] || hf_layer(plan->source.tensor[i].name) >= layers;
    }
    return make_note(plan, "%.300s: %lld tensors of multi-token prediction left out", found);
}

/* config.json and weights must agree about multi-token prediction; but transformers writes a
 * config.json that promises it (1 is its default) with weights that have none. */
static enum status settle_prediction(struct import_plan *plan)
{
    const int64_t layers = plan->config.model.num_hidden_layers,
                  depth = plan->config.model.num_nextn_predict_layers;
    int64_t found = 0;
    for (int64_t i = 0; i < plan->source.tensors; i++) {
        found += hf_layer(plan->source.tensor[i].name) >= layers;
    }
    if (found > 0 && depth == 0 && plan->config.model.family == CONFIG_DEEPSEEK_V3) {
        return leave_out(plan, found);
    }
    if (found > 0 || depth == 0) {
        return STATUS_OK;
    }
    plan->config.model.num_nextn_predict_layers = 0;
    return make_note(
        plan,
        "%.300s: config.json says num_nextn_predict_layers %lld, and there are no such "
        "weights: imported without multi-token prediction",
        depth);
}

static enum status open_source(struct import_plan *plan)
{
    TRY(safetensors_open(&plan->source, plan->options->from));
    plan->used = calloc((size_t)plan->source.tensors + 1, sizeof *plan->used);
    plan->scratch = malloc(IMPORT_SCRATCH_BYTES);
    return plan->used != NULL && plan->scratch != NULL
               ? STATUS_OK
               : status_fail(STATUS_RESOURCE, "out of memory for reading %s", plan->options->from);
}

static enum status make_plan(struct import_plan *plan)
{
    TRY(load_json(plan));
    TRY(check_quantization(plan));
    TRY(open_source(plan));
    if (plan->options->upcycle > 0) {
        return import_plan_upcycled(plan);
    }
    TRY(resolve_config(plan));
    TRY(settle_prediction(plan));
    return import_plan_published(plan);
}

enum status import_run(struct comm *world, const struct import_options *options,
                       struct import_figures *figures, void (*say)(const char *line))
{
    struct import_plan plan = {.options = options, .source = {.opened = -1}};
    const double start = step_clock();
    *figures = (struct import_figures){0};
    config_init(&plan.config);
    enum status status = comm_agree(world, make_plan(&plan), NULL);
    if (status == STATUS_OK && plan.note != NULL && world->rank == 0) {
        say(plan.note);
    }
    status = status == STATUS_OK ? write_checkpoint(&plan, world, figures) : status;
    figures->seconds = step_clock() - start;
    safetensors_close(&plan.source);
    config_free(&plan.config);
    json_decref(plan.json);
    free(plan.part);
    free(plan.used);
    free(plan.scratch);
    free(plan.note);
    return status;
}
