#include "trainer/model/shards.h"

#include <assert.h>

#include "trainer/model/model.h"

bool shards_wanted(const struct config *config, enum param_group group, int ranks)
{
    return config->parallel.zero >= 2 && ranks > 1 &&
           (group == PARAM_DENSE || group == PARAM_TENSOR);
}

static int window_of(const struct shards *shards, int64_t part)
{
    return part == PARAM_PART_EMBED || part == shards->head ? SHARDS_ENDS : (int)(part % 2);
}

void shards_layout(struct model_group *group, const struct architecture *arch, size_t width,
                   struct arena *arena)
{
    struct shards *shards = &group->shards;
    int64_t most[SHARDS_WINDOWS] = {0}, largest = 0;
    shards->head = params_part_head(arch);
    for (int64_t p = 0; p < group->zero.parts; p++) {
        const int64_t count = group->zero.part[p].count;
        int64_t *window = &most[window_of(shards, p)];
        *window = count > *window ? count : *window;
        largest = count > largest ? count : largest;
    }
    for (int w = 0; w < SHARDS_WINDOWS; w++) {
        shards->window[w] = arena_alloc(arena, (size_t)most[w] * width);
        shards->open[w] = -1;
    }
    shards->room = arena_alloc(arena, (size_t)largest * width);
}

/* Element `offset` of the group, `width` bytes each, in its part's window. */
static void *place(const struct model_group *group, int64_t offset, size_t width)
{
    const int64_t part = zero_find(&group->zero, offset);
    char *window = group->shards.window[window_of(&group->shards, part)];
    return window != NULL ? window + (size_t)(offset - group->zero.part[part].first) * width : NULL;
}

float *shards_grad(const struct model_group *group, int64_t offset)
{
    return group->shards.on       ? place(group, offset, sizeof(float))
           : group->grads != NULL ? group->grads + offset
                                  : NULL;
}

int64_t *shards_sum(const struct model_group *group, int64_t offset)
{
    return group->shards.on      ? place(group, offset, sizeof(int64_t))
           : group->sums != NULL ? group->sums + offset
                                 : NULL;
}

bool shards_holds(const struct model_group *group, int64_t offset)
{
    const int64_t part = group->shards.on ? zero_find(&group->zero, offset) : 0;
    return !group->shards.on || group->shards.open[window_of(&group->shards, part)] == part;
}

void shards_clear(struct model *model)
{
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        const size_t share = (size_t)group->zero.share;
        for (int w = 0; w < SHARDS_WINDOWS && group->shards.on; w++) {
            assert(!group->shards.flight.under_way);
            group->shards.open[w] = -1;
        }
        if (group->shards.on && model->gradients.fixed) {
            model->ops->zero(model->device, group->shard_sums, share * sizeof *group->shard_sums);
        } else if (group->shards.on) {
            model->ops->zero(model->device, group->shard, share * sizeof *group->shard);
        }
    }
}

static enum dtype dtype_of(const struct model *model)
{
    return model->gradients.fixed ? DTYPE_I64 : DTYPE_F32;
}

void shards_settle(struct model *model, enum param_group g)
{
    struct model_group *group = &model->group[g];
    struct shards *shards = &group->shards;
    if (shards->flight.under_way) {
        zero_flight_finish(&group->zero, &shards->flight, shards->room,
                           model->gradients.fixed ? (void *)group->shard_sums : group->shard,
                           model->device, model->ops);
    }
}

static bool has(const struct model_group *group, int64_t part)
{
    return group->shards.on && group->zero.part[part].count > 0;
}

void shards_progress(struct model *model)
{
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        if (group->shards.flight.under_way && comm_device_on_host(group->zero.comm)) {
            comm_exchange_test(group->zero.comm, &group->shards.flight.request);
        }
    }
}

void shards_open(struct model *model, int64_t part)
{
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        struct shards *shards = &group->shards;
        if (!has(group, part) || shards->open[window_of(shards, part)] == part) {
            continue;
        }
        const int w = window_of(shards, part);
        if (shards->flight.under_way && window_of(shards, shards->flight.part) == w) {
            shards_settle(model, (enum param_group)g);
        }
        assert(shards->open[w] < 0);
        model->ops->zero(model->device, shards->window[w],
                         (size_t)group->zero.part[part].count * dtype_bytes(dtype_of(model)));
        shards->open[w] = part;
    }
}

void shards_close(struct model *model, int64_t part)
{
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        struct shards *shards = &group->shards;
        if (!has(group, part)) {
            continue;
        }
        const int w = window_of(shards, part);
        assert(shards->open[w] == part);
        shards_settle(model, (enum param_group)g);
        zero_flight_start(&group->zero, &shards->flight, part, shards->window[w], shards->room,
                          dtype_of(model));
        shards->open[w] = -1;
    }
}
