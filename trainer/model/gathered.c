#include "trainer/model/gathered.h"

#include <assert.h>

#include "trainer/model/model.h"

bool gathered_wanted(const struct config *config, enum param_group group, int ranks)
{
    return config->parallel.zero >= 3 && shards_wanted(config, group, ranks);
}

static int window_of(const struct gathered *gathered, int64_t part)
{
    return part == PARAM_PART_EMBED                    ? GATHERED_EMBED
           : part == gathered->head && gathered->apart ? GATHERED_HEAD
           : part == gathered->head                    ? GATHERED_EMBED
                                                       : (int)(part % 2);
}

void gathered_layout(struct model_group *group, const struct architecture *arch, enum dtype act,
                     struct arena *arena)
{
    struct gathered *gathered = &group->gathered;
    int64_t most[GATHERED_WINDOWS] = {0};
    gathered->head = params_part_head(arch);
    gathered->apart = arch->mtp_depth > 0;
    gathered->coming = -1;
    for (int64_t p = 0; p < group->zero.parts; p++) {
        const int64_t count = group->zero.part[p].count;
        int64_t *window = &most[window_of(gathered, p)];
        *window = count > *window ? count : *window;
    }
    for (int w = 0; w < GATHERED_WINDOWS; w++) {
        gathered->window[w] = arena_alloc(arena, (size_t)most[w] * dtype_bytes(act));
        gathered->held[w] = -1;
    }
    gathered->kept =
        act != DTYPE_F32 ? arena_alloc(arena, (size_t)group->zero.share * dtype_bytes(act)) : NULL;
}

void *gathered_place(const struct model_group *group, int64_t offset, enum dtype act)
{
    const int64_t part = zero_find(&group->zero, offset);
    char *window = group->gathered.window[window_of(&group->gathered, part)];
    return window != NULL
               ? window + (size_t)(offset - group->zero.part[part].first) * dtype_bytes(act)
               : NULL;
}

static bool has(const struct model_group *group, int64_t part)
{
    return part >= 0 && group->gathered.on && group->zero.part[part].count > 0;
}

static void finish(struct model_group *group)
{
    struct gathered *gathered = &group->gathered;
    if (gathered->coming >= 0 && comm_device_on_host(group->zero.comm)) {
        comm_exchange_finish(group->zero.comm, &gathered->request);
    } else if (gathered->coming >= 0) {
        comm_device_wait(group->zero.comm, &gathered->mark);
    }
    gathered->coming = -1;
}

/* This rank's share stands in its place of the window, and all go to all. */
static void start(const struct model *model, struct model_group *group, int64_t part)
{
    struct gathered *gathered = &group->gathered;
    struct comm *comm = group->zero.comm;
    const struct zero_part *own = &group->zero.part[part];
    const size_t width = dtype_bytes(model->act), bytes = (size_t)own->share * width;
    const int w = window_of(gathered, part);
    const char *kept = model->act == DTYPE_F32 ? (const char *)group->master : gathered->kept;
    char *place = (char *)gathered->window[w] + (size_t)comm->rank * bytes;
    assert(gathered->coming < 0);
    gathered->held[w] = gathered->coming = part;
    model->ops->copy(model->device, place, kept + (size_t)own->at * width, bytes);
    if (comm_device_on_host(comm)) {
        comm_gather_start(comm, gathered->window[w], bytes, &gathered->request);
    } else {
        comm_device_all_gather_start(comm, gathered->window[w], place, bytes);
        gathered->mark = comm_device_mark(comm);
    }
}

static bool holds(const struct gathered *gathered, int64_t part)
{
    return gathered->held[window_of(gathered, part)] == part;
}

void gathered_use(struct model *model, int64_t part, int64_t next)
{
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        struct gathered *gathered = &group->gathered;
        if (has(group, part) && !holds(gathered, part)) {
            finish(group);
            start(model, group, part);
        }
        if (has(group, part) && gathered->coming == part) {
            finish(group);
        }
    }
    gathered_ahead(model, part, next);
}

void gathered_ahead(struct model *model, int64_t part, int64_t next)
{
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        struct gathered *gathered = &group->gathered;
        const bool ahead = has(group, next) && !holds(gathered, next) && gathered->coming < 0;
        if (ahead && window_of(gathered, next) != window_of(gathered, part)) {
            start(model, group, next);
        }
    }
    const int64_t block = params_block_of(&model->arch, part);
    if (block >= 0) {
        linears_use(&model->linears, block);
    }
}

void gathered_forget(struct model *model)
{
    linears_forget(&model->linears);
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        if (group->gathered.on) {
            finish(group);
        }
        for (int w = 0; w < GATHERED_WINDOWS && group->gathered.on; w++) {
            group->gathered.held[w] = -1;
        }
    }
}

void gathered_progress(struct model *model)
{
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        if (group->gathered.on && group->gathered.coming >= 0 &&
            comm_device_on_host(group->zero.comm)) {
            comm_exchange_test(group->zero.comm, &group->gathered.request);
        }
    }
}
