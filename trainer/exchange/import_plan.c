#include "trainer/exchange/import_plan.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/exchange/weights.h"

enum { MOST_NAMES = 10, SHAPE_TEXT = 96 };

int64_t import_part_bytes(const struct part *part)
{
    int64_t bytes = (int64_t)dtype_bytes(part->dtype);
    for (int i = 0; i < part->ndim; i++) {
        bytes *= part->shape[i];
    }
    return bytes;
}

enum status import_plan_reserve(struct import_plan *plan, int64_t count)
{
    struct part *grown = realloc(plan->part, (size_t)(plan->parts + count + 1) * sizeof *grown);
    if (grown == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for a table of %lld tensors",
                           (long long)count);
    }
    plan->part = grown;
    return STATUS_OK;
}

struct part *import_plan_add(struct import_plan *plan, const struct hf_tensor *like)
{
    struct part *part = &plan->part[plan->parts++];
    *part = (struct part){.plan = plan, .ndim = like->ndim};
    snprintf(part->name, sizeof part->name, "%s", like->name);
    memcpy(part->shape, like->shape, sizeof part->shape);
    return part;
}

const struct safetensors_tensor *import_plan_use(struct import_plan *plan, const char *name)
{
    const struct safetensors_tensor *found = safetensors_find(&plan->source, name);
    if (found != NULL) {
        plan->used[found - plan->source.tensor] = true;
    }
    return found;
}

/* --- names that do not fit --- */

void name_list_add(struct name_list *list, const char *name, int64_t most)
{
    const size_t used = strlen(list->text);
    list->count++;
    if (list->shown < most && used + strlen(name) + 8 < sizeof list->text) {
        snprintf(list->text + used, sizeof list->text - used, "%s%s", list->shown > 0 ? ", " : "",
                 name);
        list->shown++;
    }
}

static const char *dots(const struct name_list *list)
{
    return list->count > list->shown ? ", ..." : "";
}

enum status import_plan_complete(const struct import_plan *plan, const struct name_list *missing)
{
    struct name_list extra = {.text = ""};
    for (int64_t i = 0; i < plan->source.tensors; i++) {
        const char *name = plan->source.tensor[i].name;
        if (!plan->used[i] && !hf_is_ignored(name)) {
            name_list_add(&extra, name, MOST_NAMES - missing->shown);
        }
    }
    if (missing->count == 0 && extra.count == 0) {
        return STATUS_OK;
    }
    char lacks[1300] = "", has[1300] = "";
    if (missing->count > 0) {
        snprintf(lacks, sizeof lacks, "%lld tensors missing (%s%s)", (long long)missing->count,
                 missing->text, dots(missing));
    }
    if (extra.count > 0) {
        snprintf(has, sizeof has, "%s%lld tensors that the model of config.json has not%s%s%s%s",
                 missing->count > 0 ? "; " : "", (long long)extra.count,
                 extra.shown > 0 ? " (" : "", extra.text, extra.shown > 0 ? dots(&extra) : "",
                 extra.shown > 0 ? ")" : "");
    }
    return status_fail(STATUS_DATA, "%s: %s%s", plan->options->from, lacks, has);
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

enum status import_plan_shape(const struct import_plan *plan, const struct safetensors_tensor *from,
                              const int64_t *shape, int ndim)
{
    char stored[SHAPE_TEXT], wanted[SHAPE_TEXT];
    const char *path = plan->source.path[from->file];
    if (from->ndim != ndim || memcmp(from->shape, shape, (size_t)ndim * sizeof *shape) != 0) {
        shape_text(stored, from->shape, from->ndim);
        shape_text(wanted, shape, ndim);
        return status_fail(STATUS_DATA, "%s: tensor %s is %s, config.json asks for %s", path,
                           from->name, stored, wanted);
    }
    if (from->dtype == DTYPE_F32 || from->dtype == DTYPE_BF16 || from->dtype == DTYPE_F16 ||
        from->dtype == DTYPE_E4M3) {
        return STATUS_OK;
    }
    return status_fail(STATUS_DATA,
                       "%s: tensor %s has dtype %s: weights are F32, BF16, F16 or F8_E4M3", path,
                       from->name, safetensors_dtype(from->dtype));
}

/* --- published and fused names --- */

/* The scales of a float8 weight lie under its own name with a suffix, stacked as the weight is. */
static enum status add_scales(struct import_plan *plan, const struct hf_tensor *tensor,
                              const struct part *weight, const struct hf_home *home,
                              struct name_list *missing)
{
    char name[SAFETENSORS_NAME_BYTES + sizeof WEIGHTS_SCALE_SUFFIX];
    struct hf_tensor scale = *tensor;
    const int64_t rows = weights_blocks(tensor->shape[0]), cols = weights_blocks(tensor->shape[1]);
    snprintf(name, sizeof name, "%s" WEIGHTS_SCALE_SUFFIX, weight->from->name);
    const struct safetensors_tensor *found = import_plan_use(plan, name);
    if (found == NULL) {
        name_list_add(missing, name, MOST_NAMES);
        return STATUS_OK;
    }
    if (tensor->ndim != 2 || found->dtype != DTYPE_F32) {
        return status_fail(STATUS_DATA,
                           "%s: tensor %s: float8 is for matrices, with F32 scales, not %s",
                           plan->options->from, name, safetensors_dtype(found->dtype));
    }
    if (home->parts > 1 && tensor->shape[0] % WEIGHTS_SCALE_BLOCK != 0) {
        return status_fail(STATUS_DATA,
                           "%s: tensor %s: a block of 128 rows holds rows of gate and up, which "
                           "are %lld each: save the model with names per expert",
                           plan->options->from, name, (long long)tensor->shape[0]);
    }
    snprintf(scale.name, sizeof scale.name, "%.100s" WEIGHTS_SCALE_SUFFIX, tensor->name);
    scale.shape[0] = rows;
    scale.shape[1] = cols;
    const int64_t stacked[3] = {found->shape[0], home->parts * rows, cols};
    TRY(home->expert >= 0 ? import_plan_shape(plan, found, stacked, 3)
                          : import_plan_shape(plan, found, scale.shape, 2));
    struct part *part = import_plan_add(plan, &scale);
    part->dtype = DTYPE_F32;
    part->from = found;
    part->first =
        home->expert >= 0 ? (home->expert * home->parts + home->part) * import_part_bytes(part) : 0;
    return STATUS_OK;
}

/* Where `tensor` is: under its own name, or in a stack of experts. */
static const struct safetensors_tensor *find(struct import_plan *plan,
                                             const struct hf_tensor *tensor, struct hf_home *home)
{
    const struct safetensors_tensor *found = import_plan_use(plan, tensor->name);
    *home = (struct hf_home){.expert = -1, .parts = 1};
    if (found == NULL) {
        *home = hf_fused_home(tensor->name);
        found = home->exists ? import_plan_use(plan, home->name) : NULL;
    }
    return found;
}

static enum status add_tensor(struct import_plan *plan, const struct hf_tensor *tensor,
                              int64_t experts, struct name_list *missing)
{
    struct hf_home home;
    const struct safetensors_tensor *found = find(plan, tensor, &home);
    if (found == NULL) {
        name_list_add(missing, tensor->name, MOST_NAMES);
        return STATUS_OK;
    }
    const int64_t stacked[3] = {experts, home.parts * tensor->shape[0], tensor->shape[1]};
    TRY(home.expert >= 0 ? import_plan_shape(plan, found, stacked, 3)
                         : import_plan_shape(plan, found, tensor->shape, tensor->ndim));
    struct part *part = import_plan_add(plan, tensor);
    part->dtype = found->dtype;
    part->from = found;
    part->copied = plan->config.model.num_nextn_predict_layers > 0 &&
                   (strcmp(part->name, "model.embed_tokens.weight") == 0 ||
                    strcmp(part->name, "lm_head.weight") == 0);
    if (home.expert >= 0) {
        part->first = (home.expert * home.parts + home.part) * import_part_bytes(part);
    }
    return part->dtype == DTYPE_E4M3 ? add_scales(plan, tensor, part, &home, missing) : STATUS_OK;
}

/* The copies that modules of multi-token prediction hold are compared with the main ones while
 * these are read. */
static enum status use_copies(struct import_plan *plan)
{
    for (int64_t i = 0; i < plan->source.tensors; i++) {
        const struct safetensors_tensor *copy = &plan->source.tensor[i];
        const char *name = hf_copied_from(copy->name, plan->config.model.num_hidden_layers);
        const struct safetensors_tensor *main =
            name != NULL ? safetensors_find(&plan->source, name) : NULL;
        if (main == NULL || plan->used[i]) {
            continue;
        }
        plan->used[i] = true;
        TRY(import_plan_shape(plan, copy, main->shape, main->ndim));
        if (copy->dtype != main->dtype) {
            return status_fail(STATUS_DATA, "%s: tensor %s is %s, %s is %s: a copy is expected",
                               plan->options->from, copy->name, safetensors_dtype(copy->dtype),
                               name, safetensors_dtype(main->dtype));
        }
    }
    return STATUS_OK;
}

enum status import_plan_published(struct import_plan *plan)
{
    struct name_list missing = {.text = ""};
    struct hf_tensors tensors = {0};
    enum status status = hf_tensors_init(&tensors, &plan->config);
    status = status == STATUS_OK ? import_plan_reserve(plan, 2 * tensors.count) : status;
    for (int64_t i = 0; i < tensors.count && status == STATUS_OK; i++) {
        status = add_tensor(plan, &tensors.tensor[i], tensors.experts, &missing);
    }
    hf_tensors_free(&tensors);
    status = status == STATUS_OK ? use_copies(plan) : status;
    return status == STATUS_OK ? import_plan_complete(plan, &missing) : status;
}
