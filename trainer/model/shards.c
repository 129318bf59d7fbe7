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
    for (int f = 0; f < SHARDS_FLIGHTS; f++) { /* beyond the first: only of two ranks or more */
        shards->flight[f].room =
            f == 0 || shards->room == NULL
                ? shards->room
                : (char *)shards->room + (size_t)(f * largest / group->zero.comm->size) * width;
    }
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

static bool is_busy(const struct shards_flight *flight)
{
    return flight->waits || flight->flight.under_way;
}

void shards_clear(struct model *model)
{
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        const size_t share = (size_t)group->zero.share;
        for (int f = 0; f < SHARDS_FLIGHTS && group->shards.on; f++) {
            assert(!is_busy(&group->shards.flight[f]));
        }
        for (int w = 0; w < SHARDS_WINDOWS && group->shards.on; w++) {
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

static void start(const struct model *model, struct model_group *group,
                  struct shards_flight *flight)
{
    struct shards *shards = &group->shards;
    flight->waits = false;
    zero_flight_start(&group->zero, &flight->flight, flight->part,
                      shards->window[window_of(shards, flight->part)], flight->room,
                      dtype_of(model));
}

static void land(struct model *model, struct model_group *group, struct shards_flight *flight)
{
    if (flight->waits) {
        start(model, group, flight);
    }
    if (flight->flight.under_way) {
        zero_flight_finish(&group->zero, &flight->flight, flight->room,
                           model->gradients.fixed ? (void *)group->shard_sums : group->shard,
                           model->device, model->ops);
    }
}

/* In the order in which they were closed. */
static struct shards_flight *flight_of(struct shards *shards, int number)
{
    return &shards->flight[(shards->next + number) % SHARDS_FLIGHTS];
}

void shards_settle(struct model *model, enum param_group g)
{
    struct model_group *group = &model->group[g];
    for (int f = 0; f < SHARDS_FLIGHTS; f++) {
        land(model, group, flight_of(&group->shards, f));
    }
}

static bool has(const struct model_group *group, int64_t part)
{
    return group->shards.on && group->zero.part[part].count > 0;
}

void shards_start(struct model *model)
{
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        for (int f = 0; f < SHARDS_FLIGHTS; f++) {
            struct shards_flight *flight = flight_of(&group->shards, f);
            if (flight->waits) {
                start(model, group, flight);
            }
        }
    }
}

void shards_progress(struct model *model)
{
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        struct zero_flight *flight = &group->shards.flight[0].flight;
        if (flight->under_way && comm_device_on_host(group->zero.comm)) {
            comm_exchange_test(group->zero.comm, &flight->request);
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
        for (int f = 0; f < SHARDS_FLIGHTS; f++) {
            struct shards_flight *flight = flight_of(shards, f);
            if (is_busy(flight) && window_of(shards, flight->part) == w) {
                land(model, group, flight);
            }
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
        const bool host = comm_device_on_host(group->zero.comm);
        struct shards_flight *flight = flight_of(shards, 0);
        assert(shards->open[w] == part);
        land(model, group, flight); /* the oldest */
        shards->open[w] = -1;
        flight->part = part;
        flight->waits = true;
        if (host) {
            start(model, group, flight);
        } else {
            shards->next = (shards->next + 1) % SHARDS_FLIGHTS;
        }
    }
}
