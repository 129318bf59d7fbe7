#include "trainer/model/lane.h"

#include <stdlib.h>
#include <string.h>

#include "parallel/activity.h"
#include "trainer/model/model.h"

/* The fields of struct model that a pass has for itself. */
#define FIELD(name)                                                                                \
    {                                                                                              \
        offsetof(struct model, name), sizeof((struct model *)0)->name                              \
    }
static const struct {
    size_t at, bytes;
} fields[] = {
    /* memory, of each lane its own (lane_layout in model.c) */
    FIELD(shared), FIELD(moe), FIELD(mlp), FIELD(delta), FIELD(input), FIELD(own), FIELD(stream),
    FIELD(final_norm), FIELD(final_rstd),
    /* what runs */
    FIELD(blocks), FIELD(balance.chosen), FIELD(losses), FIELD(aux), FIELD(linears.again),
    FIELD(linears.drawer), FIELD(pipe.latest), FIELD(pipe.ending)};
enum { FIELDS = sizeof fields / sizeof fields[0] };

static size_t kept_bytes(void)
{
    size_t bytes = 0;
    for (int i = 0; i < FIELDS; i++) {
        bytes += fields[i].bytes;
    }
    return bytes;
}

/* The model's fields from the lane's, or (not in) the other way. */
static void copy(struct model *model, char *kept, bool in)
{
    for (int i = 0; i < FIELDS; i++) {
        char *field = (char *)model + fields[i].at;
        memcpy(in ? field : kept, in ? kept : field, fields[i].bytes);
        kept += fields[i].bytes;
    }
}

/* Whether its table has pairs that go side by side: not by themselves where rows between experts
 * are staged, which hides nothing. */
static bool has_pairs(const struct model *model)
{
    const enum pipeline_schedule schedule = model->slice.shape.schedule;
    const int wish = model->config->parallel.overlap;
    return schedule == PIPELINE_PAIRS ||
           (schedule == PIPELINE_DUALPIPE_V && wish != CONFIG_OVERLAP_OFF &&
            (wish == CONFIG_OVERLAP_ON || !model->mesh->staged));
}

bool lanes_wanted(const struct model *model)
{
    return model->training && has_pairs(model) && model->slots > 1 &&
           (model->mesh->ep.size > 1 || model->mesh->etp.size > 1) &&
           !model->group[PARAM_DENSE].gathered.on;
}

static enum status open_lanes(struct model *model)
{
    struct lanes *lanes = &model->lanes;
    for (int i = 0; i < LANES; i++) {
        lanes->kept[i] = malloc(kept_bytes());
        if (lanes->kept[i] == NULL) {
            return status_fail(STATUS_RESOURCE, "out of memory for two passes side by side");
        }
        copy(model, lanes->kept[i], false);
    }
    lane_use(model, 1);
    model->own = NULL; /* lane 0's */
    const enum status status = model_own_batch(model);
    lane_use(model, 0);
    return status;
}

enum status lanes_init(struct model *model)
{
    model->lanes.count = lanes_wanted(model) ? LANES : 1;
    return model->lanes.count > 1 ? open_lanes(model) : STATUS_OK;
}

enum status lanes_open(struct model *model)
{
    for (int64_t i = 0; i < model->lanes.count && model->lanes.count > 1; i++) {
        TRY(fiber_init(&model->lanes.fiber[i]));
    }
    return STATUS_OK;
}

void lanes_free(struct model *model)
{
    if (model->lanes.kept[1] != NULL) {
        lane_use(model, 1);
        free(model->own);
        lane_use(model, 0);
    }
    for (int i = 0; i < LANES; i++) {
        free(model->lanes.kept[i]);
        fiber_free(&model->lanes.fiber[i]);
    }
    model->lanes = (struct lanes){0};
}

void lanes_losses(struct model *model, struct model_losses *losses, double *aux)
{
    for (int64_t lane = model->lanes.count - 1; lane >= 0; lane--) {
        lane_use(model, lane);
        model->losses = losses;
        model->aux = aux;
    }
}

void lane_use(struct model *model, int64_t lane)
{
    struct lanes *lanes = &model->lanes;
    if (lane != lanes->current) {
        copy(model, lanes->kept[lanes->current], false);
        copy(model, lanes->kept[lane], true);
        lanes->current = lane;
    }
}

int64_t lane_of(const struct model *model, int64_t slot)
{
    return model->lanes.count < LANES                      ? 0
           : model->slice.shape.schedule == PIPELINE_PAIRS ? slot
                                                           : model->slot[slot].part;
}

bool lane_heads(const struct model *model, int64_t lane)
{
    const struct slice *slice = &model->slice;
    return model->lanes.count < LANES || slice->shape.schedule == PIPELINE_PAIRS
               ? slice->heads
               : slice->part[lane].head;
}

static void go_on(struct model *model, int64_t lane)
{
    struct comm_activity *activity = model->mesh->world->activity;
    lane_use(model, lane);
    if (activity != NULL) {
        activity->layer = model->lanes.layer[lane];
    }
    fiber_resume(&model->lanes.fiber[lane]);
    model->lanes.layer[lane] = activity != NULL ? activity->layer : -1;
}

void lanes_start(struct model *model, const struct lane_pass *first, const struct lane_pass *second)
{
    struct fiber *fibers = model->lanes.fiber;
    model->lanes.layer[0] = model->lanes.layer[1] = -1;
    fiber_start(&fibers[first->lane], first->run, first->arg);
    fiber_start(&fibers[second->lane], second->run, second->arg);
    go_on(model, first->lane);
    while (!fibers[first->lane].done) {
        if (!fibers[second->lane].done) {
            go_on(model, second->lane);
        }
        go_on(model, first->lane);
    }
}

void lanes_finish(struct model *model, const struct lane_pass *second)
{
    lane_use(model, second->lane);
    while (!model->lanes.fiber[second->lane].done) {
        go_on(model, second->lane);
    }
}
