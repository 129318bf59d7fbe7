#include "trainer/state.h"

#include <assert.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/exchange/weights.h"
#include "trainer/optimizer.h"

enum { NAME_BYTES = STATE_NAME_BYTES, KINDS = 5 };

/* What of a parameter is meant. */
enum kind { KIND_WEIGHT, KIND_MASTER, KIND_MOMENT1, KIND_MOMENT2, KIND_EMA };
static const char *const prefix[KINDS] = {"", "master/", "moment1/", "moment2/", "ema/"};

static enum status slices_init(struct state_slices *slices, const struct model *model)
{
    enum {
        MOST = 3
    }; /* slices of a share of columns: a rest of a row, whole rows, a start of one */
    const int64_t biases = architecture_moe_blocks(&model->arch);
    const size_t most = (size_t)(model->params.count * MOST * KINDS + biases),
                 names = (size_t)(model->params.count * KINDS + biases);
    *slices = (struct state_slices){.slice = calloc(most, sizeof *slices->slice),
                                    .name = calloc(names, NAME_BYTES),
                                    .moments = model->moments};
    return slices->slice != NULL && slices->name != NULL
               ? STATUS_OK
               : status_fail(STATUS_RESOURCE, "out of memory for the table of tensors");
}

void state_slices_free(struct state_slices *slices)
{
    free(slices->slice);
    free(slices->name);
    *slices = (struct state_slices){0};
}

static enum dtype dtype_of(const struct state_slices *slices, const struct model *model,
                           enum kind kind)
{
    const bool is_moment = kind == KIND_MOMENT1 || kind == KIND_MOMENT2;
    return kind == KIND_WEIGHT ? model->act : is_moment ? slices->moments : DTYPE_F32;
}

/* Memory of element `first` of the group: all but the weights, unless these are gathered, hold this
 * rank's share only. NULL in a model that is only measured. */
static void *element(const struct state_slices *slices, const struct model *model,
                     const struct model_group *group, enum kind kind, int64_t first)
{
    const bool staged = slices->moments != model->moments, gathered = group->gathered.on;
    void *const base[KINDS] = {
        [KIND_WEIGHT] = !gathered                 ? group->weights
                        : model->act == DTYPE_F32 ? group->master
                                                  : group->gathered.kept,
        [KIND_MASTER] = group->master,
        [KIND_EMA] = group->ema,
        [KIND_MOMENT1] = staged ? (void *)group->shard : group->moment1,
        [KIND_MOMENT2] = staged ? (void *)group->shard : group->moment2,
    };
    const int64_t at = kind == KIND_WEIGHT && !gathered ? first : zero_place(&group->zero, first);
    const size_t width = dtype_bytes(dtype_of(slices, model, kind));
    return base[kind] != NULL ? (char *)base[kind] + (size_t)at * width : NULL;
}

/* Slices are the device's memory. */
static enum status read_device(const struct checkpoint_slice *slice, int64_t offset, void *to,
                               size_t bytes)
{
    const struct model *model = slice->context;
    model->ops->download(model->device, to, (const char *)slice->data + offset, bytes);
    return STATUS_OK;
}

static void write_device(const struct checkpoint_slice *slice, void *to, const void *from,
                         size_t bytes)
{
    const struct model *model = slice->context;
    model->ops->upload(model->device, to, from, bytes);
}

/* The elements of a parameter from element `at` of the rank's part on, to `last` at most, that a
 * slice can say: what is in one in the whole, or whole rows of the columns that the rank has. */
static struct checkpoint_slice next_slice(const struct param *param, int64_t at, int64_t last)
{
    const struct param_run run = param_run(param, at, last);
    const int64_t columns = param->part[1], rows = (last - at) / columns;
    struct checkpoint_slice slice = {.ndim = param->ndim,
                                     .shape = {param->shape[0], param->shape[1], 1, 1},
                                     .first = run.whole,
                                     .count = run.count};
    if (columns < param->shape[1] && at % columns == 0 && rows > 1) {
        slice.count = rows * columns;
        slice.run = columns;
        slice.stride = param->shape[1];
    }
    return slice;
}

/* Of this kind the host has the memory itself. */
static bool is_offloaded(const struct state_slices *slices, const struct model *model,
                         const struct model_group *group, enum kind kind)
{
    const bool staged = slices->moments != model->moments; /* in the gradients */
    return kind == KIND_MASTER   ? offload_masters(model, group)
           : kind == KIND_WEIGHT ? false
           : kind == KIND_EMA    ? model->offload.on
                                 : model->offload.on && !staged;
}

/* This rank's share of every parameter, as `kind` under the names `name_prefix`NAME. */
static void add_kind(struct state_slices *slices, const struct model *model, enum kind kind,
                     const char *name_prefix)
{
    for (int64_t i = 0; i < model->params.count; i++) {
        const struct param *param = &model->params.table[i];
        const struct model_group *group = &model->group[param->group];
        const struct param_piece piece = param_piece(param, &group->zero, group->zero.comm->rank);
        const int64_t first = piece.first, last = piece.last;
        if (first >= last || (kind == KIND_MOMENT2 && param->muon)) {
            continue;
        }
        const bool host = is_offloaded(slices, model, group, kind);
        char *name = slices->name[slices->names++];
        const int length = snprintf(name, NAME_BYTES, "%s%s", name_prefix, param->name);
        assert(length > 0 && length < NAME_BYTES);
        for (int64_t at = first; at < last;) {
            struct checkpoint_slice *slice = &slices->slice[slices->count++];
            *slice = next_slice(param, at - param->offset, last - param->offset);
            slice->name = name;
            slice->dtype = dtype_of(slices, model, kind);
            slice->data = element(slices, model, group, kind, at);
            slice->read = host ? NULL : read_device;
            slice->write = host ? NULL : write_device;
            slice->context = (void *)(uintptr_t)model;
            at += slice->count;
        }
    }
}

/* The selection biases of the routers, whole: every rank has them. */
static void add_biases(struct state_slices *slices, const struct model *model)
{
    const struct architecture *arch = &model->arch;
    for (int64_t m = 0; m < architecture_moe_blocks(arch) && arch->has_bias; m++) {
        struct checkpoint_slice *slice = &slices->slice[slices->count++];
        char *name = slices->name[slices->names++];
        params_bias_name(name, NAME_BYTES, m + arch->dense_layers);
        *slice = (struct checkpoint_slice){
            .name = name,
            .dtype = DTYPE_F32,
            .ndim = 1,
            .shape = {arch->experts, 1, 1, 1},
            .count = arch->experts,
            .data = model->router_bias != NULL ? model->router_bias + m * arch->experts : NULL,
            .read = read_device,
            .write = write_device,
            .context = (void *)(uintptr_t)model};
    }
}

char *state_text(const struct model *model, const struct progress_state *at, const char *tokenizer)
{
    char *config = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&config, &bytes);
    if (out == NULL) {
        return NULL;
    }
    config_print(model->config, out);
    fclose(out);
    json_t *json = json_pack("{s:I, s:I, s:I, s:s}", "step", (json_int_t)at->step, "position",
                             (json_int_t)at->position, "ranks",
                             (json_int_t)model->mesh->world->size, "config", config);
    if (at->data.count > 0) { /* bench and verify train on no files */
        json_object_set_new(json, "data", data_state_write(&at->data));
    }
    json_object_set_new(json, "guard", guard_write(&at->guard));
    json_object_set_new(json, "tokenizer", json_string(tokenizer)); /* left out when not UTF-8 */
    char *text = json_dumps(json, JSON_INDENT(1) | JSON_SORT_KEYS);
    json_decref(json);
    free(config);
    return text;
}

enum status state_slices_init(struct state_slices *slices, const struct model *model)
{
    TRY(slices_init(slices, model));
    add_kind(slices, model, KIND_WEIGHT, "");
    if (model->mesh->world->rank == 0) {
        add_biases(slices, model);
    }
    if (model->act != DTYPE_F32) {
        add_kind(slices, model, KIND_MASTER, prefix[KIND_MASTER]);
    }
    add_kind(slices, model, KIND_MOMENT1, prefix[KIND_MOMENT1]);
    add_kind(slices, model, KIND_MOMENT2, prefix[KIND_MOMENT2]);
    if (model->config->optimizer.ema > 0) {
        add_kind(slices, model, KIND_EMA, prefix[KIND_EMA]);
    }
    return STATUS_OK;
}

enum status state_save(const struct model *model, const char *root, const struct progress_state *at,
                       const char *tokenizer)
{
    const struct checkpoint_options options = {.keep_last =
                                                   (int)model->config->checkpoint.keep_last};
    struct comm *world = model->mesh->world;
    struct state_slices slices = {0};
    char *text = NULL;
    enum status status = comm_agree(world, state_slices_init(&slices, model), NULL);
    if (status == STATUS_OK) {
        text = state_text(model, at, tokenizer);
        status = text != NULL
                     ? STATUS_OK
                     : status_fail(STATUS_RESOURCE, "out of memory for the checkpoint's state");
        status = comm_agree(world, status, NULL);
    }
    if (status == STATUS_OK) {
        status = checkpoint_save(world, root, at->step, text, slices.slice, slices.count, &options);
    }
    state_slices_free(&slices);
    free(text);
    return status;
}

/* Collective over world. Whether the checkpoint holds rank 0's first parameter as `kind`, and,
 * where dtype is not NULL, the dtype of that weight: stages of a pipeline begin with others. */
static enum status find_kind(const struct model *model, const char *path, enum kind kind, bool *has,
                             enum dtype *dtype)
{
    const char *first = model->params.table[0].name;
    struct comm *world = model->mesh->world;
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s%s", prefix[kind], first);
    TRY(comm_agree(world, checkpoint_holds(path, name, has), NULL));
    comm_broadcast(world, has, sizeof *has, 0);
    if (dtype != NULL) {
        TRY(comm_agree(world, checkpoint_dtype(path, first, dtype), NULL));
        comm_broadcast(world, dtype, sizeof *dtype, 0);
    }
    return STATUS_OK;
}

/* Slices of one kind, from tensors under the names `name_prefix`NAME; with the masters, the router
 * biases. */
static enum status load_kind(struct model *model, const char *path, enum kind kind,
                             const char *name_prefix)
{
    struct state_slices slices = {0};
    TRY(comm_agree(model->mesh->world, slices_init(&slices, model), NULL));
    add_kind(&slices, model, kind, name_prefix);
    if (kind == KIND_MASTER) {
        add_biases(&slices, model);
    }
    const enum status status =
        checkpoint_load(model->mesh->world, path, slices.slice, slices.count);
    state_slices_free(&slices);
    return status;
}

/* Published and transformers' checkpoints may lack what a config.json promises. */
static enum status check_prediction(const struct model *model, const struct weights *weights)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "model.layers.%lld.eh_proj.weight", (long long)model->arch.layers);
    return model->arch.mtp_depth == 0 || weights_find(weights, name) != NULL
               ? STATUS_OK
               : status_fail(STATUS_MISMATCH,
                             "%s: holds no multi-token prediction (%s): set "
                             "model.num_nextn_predict_layers: 0",
                             weights->path, name);
}

/* Into the f32 masters, whatever dtype the checkpoint has them in. */
static enum status load_masters(const struct model *model, const struct state_slices *slices,
                                const char *path)
{
    struct weights weights;
    enum status status = weights_open(&weights, path);
    status = status == STATUS_OK ? check_prediction(model, &weights) : status;
    for (int64_t i = 0; i < slices->count && status == STATUS_OK; i++) {
        status = weights_load(&weights, &slices->slice[i], model->config->checkpoint.resize_vocab);
    }
    weights_close(&weights);
    return status;
}

enum status state_load_weights(struct model *model, const char *path)
{
    struct comm *world = model->mesh->world;
    struct state_slices slices = {0};
    TRY(comm_agree(world, slices_init(&slices, model), NULL));
    add_kind(&slices, model, KIND_MASTER, "");
    add_biases(&slices, model);
    const enum status status = comm_agree(world, load_masters(model, &slices, path), NULL);
    state_slices_free(&slices);
    TRY(status);
    model_publish(model);
    return STATUS_OK;
}

/* The masters of a checkpoint that training saved, all at once: every block is read once. */
static enum status resume_masters(struct model *model, const char *path)
{
    bool masters = false;
    enum dtype dtype = DTYPE_COUNT;
    TRY(find_kind(model, path, KIND_MASTER, &masters, &dtype));
    if (!masters && dtype != DTYPE_F32) {
        return state_load_weights(model, path);
    }
    TRY(load_kind(model, path, KIND_MASTER, masters ? prefix[KIND_MASTER] : ""));
    model_publish(model);
    return STATUS_OK;
}

static enum status load_average(struct model *model, const char *path)
{
    bool averages = false;
    TRY(find_kind(model, path, KIND_EMA, &averages, NULL));
    if (!averages) {
        return status_fail(
            STATUS_MISMATCH,
            "%s: holds no ema/ weights: train with optimizer.ema, or leave --ema out", path);
    }
    TRY(load_kind(model, path, KIND_MASTER, prefix[KIND_EMA]));
    model_publish(model);
    return STATUS_OK;
}

/* Collective. That nothing of the checkpoint's model would be left behind. */
static enum status check_model(const struct model *model, const char *path)
{
    struct comm *world = model->mesh->world;
    return comm_agree(
        world, world->rank == 0 ? weights_check_model(path, model->config) : STATUS_OK, NULL);
}

static enum status read_progress(const char *path, struct progress_state *at)
{
    char *text = NULL;
    TRY(checkpoint_state(path, &text));
    json_t *json = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    const json_t *step = json_object_get(json, "step"),
                 *position = json_object_get(json, "position");
    const bool good = json_is_integer(step) && json_is_integer(position) &&
                      data_state_read(json_object_get(json, "data"), &at->data) &&
                      guard_read(json_object_get(json, "guard"), &at->guard);
    at->step = json_integer_value(step);
    at->position = json_integer_value(position);
    json_decref(json);
    free(text);
    return good ? STATUS_OK
                : status_fail(STATUS_DATA,
                              "%s: the checkpoint's state says not where the run stands", path);
}

/* The dtype of the checkpoint's moments. One written by Muon has no second moments of matrices. */
static enum status moments_dtype(const struct model *model, const char *path, enum dtype *dtype)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "moment1/%s", model->params.table[0].name);
    TRY(checkpoint_dtype(path, name, dtype));
    if (*dtype == DTYPE_COUNT) {
        return status_fail(STATUS_MISMATCH,
                           "%s: weights only, no %s: start a run from it with "
                           "checkpoint.init_from",
                           path, name);
    }
    const struct param *matrix = NULL;
    for (int64_t i = 0; i < model->params.count && matrix == NULL; i++) {
        matrix = optimizer_takes_muon(&model->params.table[i]) ? &model->params.table[i] : NULL;
    }
    bool first = true, second = true;
    if (matrix != NULL && !matrix->muon) {
        snprintf(name, sizeof name, "moment1/%s", matrix->name);
        TRY(checkpoint_holds(path, name, &first));
        snprintf(name, sizeof name, "moment2/%s", matrix->name);
        TRY(checkpoint_holds(path, name, &second));
    }
    return first == second
               ? STATUS_OK
               : status_fail(STATUS_MISMATCH,
                             "%s: written with optimizer.name muon, no %s: resume with muon, or "
                             "start a new run.dir with checkpoint.init_from",
                             path, name);
}

/* Moments that were staged. */
struct converting {
    const struct model *model;
    const struct model_group *group;
    enum dtype dtype; /* they are staged in */
};

static void convert_part(void *context, const struct offload_part *part)
{
    const struct converting *c = context;
    const char *staged =
        (const char *)c->group->shard + (size_t)part->first * dtype_bytes(c->dtype);
    void *moments = part->moment1 != NULL ? part->moment1 : part->moment2;
    c->model->ops->cast(c->model->device, tensor_1d(moments, c->model->moments, part->count),
                        tensor_1d((void *)(uintptr_t)staged, c->dtype, part->count));
}

/* One kind; those kept in `dtype`, which is not the model's, are staged and converted, bf16 to
 * nearest. */
static enum status load_moment(struct model *model, const char *path, enum kind kind,
                               enum dtype dtype)
{
    struct comm *world = model->mesh->world;
    struct state_slices slices = {0};
    TRY(comm_agree(world, slices_init(&slices, model), NULL));
    slices.moments = dtype;
    add_kind(&slices, model, kind, prefix[kind]);
    const enum status status = checkpoint_load(world, path, slices.slice, slices.count);
    state_slices_free(&slices);
    for (int g = 0; g < model->params.groups && status == STATUS_OK; g++) {
        const struct model_group *group = &model->group[g];
        struct converting converting = {.model = model, .group = group, .dtype = dtype};
        if ((kind == KIND_MOMENT1 ? group->moment1 : group->moment2) != NULL) {
            offload_pass(model, (enum param_group)g, 0,
                         kind == KIND_MOMENT1 ? OFFLOAD_MOMENT1 : OFFLOAD_MOMENT2, convert_part,
                         &converting);
        }
    }
    offload_wait(model);
    return status;
}

static enum status load_moments(struct model *model, const char *path)
{
    struct comm *world = model->mesh->world;
    struct state_slices slices = {0};
    enum dtype dtype = model->moments;
    TRY(comm_agree(world, moments_dtype(model, path, &dtype), NULL));
    dtype = dtype == DTYPE_BF16 ? DTYPE_BF16 : DTYPE_F32;
    if (dtype != model->moments) {
        linears_dirtied(&model->linears); /* they pass through the gradients */
        TRY(load_moment(model, path, KIND_MOMENT1, dtype));
        return load_moment(model, path, KIND_MOMENT2, dtype);
    }
    TRY(comm_agree(world, slices_init(&slices, model), NULL));
    add_kind(&slices, model, KIND_MOMENT1, prefix[KIND_MOMENT1]);
    add_kind(&slices, model, KIND_MOMENT2, prefix[KIND_MOMENT2]);
    const enum status status = checkpoint_load(world, path, slices.slice, slices.count);
    state_slices_free(&slices);
    return status;
}

static void say(const struct model *model, const char *path, const char *what)
{
    if (model->mesh->world->rank == 0) {
        printf("%s: %s\n", path, what);
    }
}

/* The running average, where the run keeps one. */
static enum status resume_average(struct model *model, const char *path)
{
    const bool wanted = model->config->optimizer.ema > 0;
    bool there = false;
    TRY(find_kind(model, path, KIND_EMA, &there, NULL));
    if (wanted && there) {
        return load_kind(model, path, KIND_EMA, prefix[KIND_EMA]);
    }
    if (wanted) {
        optimizer_start_average(model);
        say(model, path, "holds no ema/ tensors: the average starts from its weights");
    } else if (there) {
        say(model, path, "its ema/ tensors are left behind: optimizer.ema is 0");
    }
    return STATUS_OK;
}

enum status state_load(struct model *model, const char *path, struct progress_state *at)
{
    TRY(comm_agree(model->mesh->world, read_progress(path, at), NULL));
    TRY(check_model(model, path));
    TRY(resume_masters(model, path));
    TRY(load_moments(model, path));
    return resume_average(model, path);
}

struct loading {
    struct model *model;
    bool average;
};

static enum status load_one(void *context, const char *checkpoint)
{
    const struct loading *loading = context;
    TRY(check_model(loading->model, checkpoint));
    return loading->average ? load_average(loading->model, checkpoint)
                            : state_load_weights(loading->model, checkpoint);
}

enum status state_load_newest(struct model *model, const char *path, bool average)
{
    struct loading loading = {.model = model, .average = average};
    return state_use_newest(model->mesh->world, path, load_one, &loading);
}
