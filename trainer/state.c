#include "trainer/state.h"

#include <assert.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "kernels/base/io.h"
#include "trainer/weights.h"

enum { NAME_BYTES = 128, KINDS = 4, MAX_PATH = 4096 };

/* What of a parameter is meant. */
enum kind { KIND_WEIGHT, KIND_MASTER, KIND_MOMENT1, KIND_MOMENT2 };
static const char *const prefix[KINDS] = {"", "master/", "moment1/", "moment2/"};

struct slices {
    struct checkpoint_slice *slice; /* owned */
    char (*name)[NAME_BYTES];       /* owned */
    int64_t count;
};

static enum status slices_init(struct slices *slices, const struct model *model)
{
    const int64_t biases = architecture_moe_blocks(&model->arch);
    const size_t most = (size_t)(model->params.count * KINDS + biases);
    *slices = (struct slices){.slice = calloc(most, sizeof *slices->slice),
                              .name = calloc(most, NAME_BYTES)};
    return slices->slice != NULL && slices->name != NULL
               ? STATUS_OK
               : status_fail(STATUS_RESOURCE, "out of memory for the table of tensors");
}

static void slices_free(struct slices *slices)
{
    free(slices->slice);
    free(slices->name);
    *slices = (struct slices){0};
}

/* Memory of element `first` of the group: masters and moments hold this rank's share only. */
static void *element(const struct model *model, const struct model_group *group, enum kind kind,
                     int64_t first)
{
    const int64_t at = first - group->zero.first;
    switch (kind) {
    case KIND_WEIGHT:
        return (char *)group->weights + (size_t)first * dtype_bytes(model->act);
    case KIND_MASTER:
        return group->master + at;
    case KIND_MOMENT1:
        return group->moment1 + at;
    case KIND_MOMENT2:
        return group->moment2 + at;
    }
    return NULL;
}

/* This rank's share of every parameter, as `kind` under the names `name_prefix`NAME. */
static void add_kind(struct slices *slices, const struct model *model, enum kind kind,
                     const char *name_prefix)
{
    for (int64_t i = 0; i < model->params.count; i++) {
        const struct param *param = &model->params.table[i];
        const struct model_group *group = &model->group[param->group];
        const int64_t begin = group->zero.first, end = begin + group->zero.share;
        const int64_t first = param->offset > begin ? param->offset : begin;
        const int64_t last =
            param->offset + param->count < end ? param->offset + param->count : end;
        if (first >= last) {
            continue;
        }
        struct checkpoint_slice *slice = &slices->slice[slices->count];
        char *name = slices->name[slices->count++];
        const int length = snprintf(name, NAME_BYTES, "%s%s", name_prefix, param->name);
        assert(length > 0 && length < NAME_BYTES);
        *slice = (struct checkpoint_slice){.name = name,
                                           .dtype = kind == KIND_WEIGHT ? model->act : DTYPE_F32,
                                           .ndim = param->ndim,
                                           .shape = {param->shape[0], param->shape[1], 1, 1},
                                           .first = first - param->offset,
                                           .count = last - first,
                                           .data = element(model, group, kind, first)};
    }
}

/* The selection biases of the routers, whole: every rank has them. */
static void add_biases(struct slices *slices, const struct model *model)
{
    const struct architecture *arch = &model->arch;
    for (int64_t m = 0; m < architecture_moe_blocks(arch) && arch->has_bias; m++) {
        struct checkpoint_slice *slice = &slices->slice[slices->count];
        char *name = slices->name[slices->count++];
        params_bias_name(name, NAME_BYTES, m + arch->dense_layers);
        *slice = (struct checkpoint_slice){.name = name,
                                           .dtype = DTYPE_F32,
                                           .ndim = 1,
                                           .shape = {arch->experts, 1, 1, 1},
                                           .count = arch->experts,
                                           .data = model->router_bias + m * arch->experts};
    }
}

static char *state_text(const struct model *model, const struct progress_state *at)
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
    char *text = json_dumps(json, JSON_INDENT(1) | JSON_SORT_KEYS);
    json_decref(json);
    free(config);
    return text;
}

enum status state_save(const struct model *model, const char *root, const struct progress_state *at)
{
    const struct checkpoint_options options = {.keep_last =
                                                   (int)model->config->checkpoint.keep_last};
    struct slices slices = {0};
    TRY(comm_agree(model->mesh->world, slices_init(&slices, model), NULL));
    char *text = state_text(model, at);
    add_kind(&slices, model, KIND_WEIGHT, "");
    if (model->mesh->world->rank == 0) {
        add_biases(&slices, model);
    }
    if (model->act != DTYPE_F32) {
        add_kind(&slices, model, KIND_MASTER, prefix[KIND_MASTER]);
    }
    add_kind(&slices, model, KIND_MOMENT1, prefix[KIND_MOMENT1]);
    add_kind(&slices, model, KIND_MOMENT2, prefix[KIND_MOMENT2]);
    enum status status =
        text != NULL ? checkpoint_save(model->mesh->world, root, at->step, text, slices.slice,
                                       slices.count, &options)
                     : status_fail(STATUS_RESOURCE, "out of memory for the checkpoint's state");
    slices_free(&slices);
    free(text);
    return status;
}

/* Into the f32 masters, whatever dtype the checkpoint has them in. */
static enum status load_masters(const struct slices *slices, const char *path)
{
    struct weights weights;
    enum status status = weights_open(&weights, path);
    for (int64_t i = 0; i < slices->count && status == STATUS_OK; i++) {
        status = weights_load(&weights, &slices->slice[i]);
    }
    weights_close(&weights);
    return status;
}

enum status state_load_weights(struct model *model, const char *path)
{
    struct comm *world = model->mesh->world;
    struct slices slices = {0};
    TRY(comm_agree(world, slices_init(&slices, model), NULL));
    add_kind(&slices, model, KIND_MASTER, "");
    add_biases(&slices, model);
    const enum status status = comm_agree(world, load_masters(&slices, path), NULL);
    slices_free(&slices);
    if (status == STATUS_OK) {
        model_publish(model);
    }
    return status;
}

static enum status read_progress(const char *path, struct progress_state *at)
{
    char *text = NULL;
    TRY(checkpoint_state(path, &text));
    json_t *json = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    const json_t *step = json_object_get(json, "step"),
                 *position = json_object_get(json, "position");
    const bool good = json_is_integer(step) && json_is_integer(position);
    *at = (struct progress_state){.step = json_integer_value(step),
                                  .position = json_integer_value(position)};
    json_decref(json);
    free(text);
    return good ? STATUS_OK
                : status_fail(STATUS_DATA, "%s: no step or position in the checkpoint's state",
                              path);
}

enum status state_load(struct model *model, const char *path, struct progress_state *at)
{
    struct slices slices = {0};
    TRY(comm_agree(model->mesh->world, read_progress(path, at), NULL));
    TRY(state_load_weights(model, path));
    TRY(comm_agree(model->mesh->world, slices_init(&slices, model), NULL));
    add_kind(&slices, model, KIND_MOMENT1, prefix[KIND_MOMENT1]);
    add_kind(&slices, model, KIND_MOMENT2, prefix[KIND_MOMENT2]);
    const enum status status =
        checkpoint_load(model->mesh->world, path, slices.slice, slices.count);
    slices_free(&slices);
    return status;
}

static void warn(void *context, const char *message)
{
    (void)context;
    fprintf(stderr, "switchyard: warning: %s\n", message);
}

bool state_is_place(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

enum status state_newest(struct comm *world, const char *root, int skip, char **found,
                         int64_t *step)
{
    return checkpoint_newest(world, root, skip, found, step, warn, NULL);
}

bool state_try_older(const struct comm *world, enum status status)
{
    if (status != STATUS_DATA) {
        return false;
    }
    if (world->rank == 0) {
        fprintf(stderr, "switchyard: warning: %s; trying an older checkpoint\n", status_message());
    }
    return true;
}

enum status state_load_newest(struct model *model, const char *path)
{
    struct comm *world = model->mesh->world;
    char name[MAX_PATH];
    snprintf(name, sizeof name, "%s/manifest.json", path);
    if (io_exists(name)) {
        return state_load_weights(model, path);
    }
    snprintf(name, sizeof name, "%s/checkpoints", path);
    for (int skip = 0;; skip++) {
        char *found = NULL;
        int64_t step = 0;
        TRY(state_newest(world, name, skip, &found, &step));
        if (found == NULL) {
            return status_fail(STATUS_DATA,
                               "%s: no checkpoint here: train first, or name a checkpoint folder",
                               path);
        }
        const enum status status = state_load_weights(model, found);
        free(found);
        if (!state_try_older(world, status)) {
            return status;
        }
    }
}
