#include "trainer/model/offload.h"

#include <assert.h>
#include <string.h>

#include "trainer/model/model.h"

/* Elements of a window. Most: long enough for the link, short beside a share; of a small share a
 * part, so that filling the first and emptying the last does not count. */
enum { MOST = 1 << 20, LEAST = 4096, PARTS = 16, UNIT = 64 };

static void *host_alloc(struct device *device, size_t bytes)
{
    void *data = device_ops(device)->host_alloc(device, bytes);
    if (data != NULL) {
        memset(data, 0, bytes);
    }
    return data;
}

static void host_free(struct device *device, void *data, size_t bytes)
{
    device_ops(device)->host_free(device, data, bytes);
}

struct arena offload_arena(const struct model *model)
{
    return (struct arena){
        .source = {.device = model->device, .alloc = host_alloc, .free = host_free}};
}

bool offload_masters(const struct model *model, const struct model_group *group)
{
    const bool weights = group->zero.parts == 1 || group->gathered.on;
    return model->offload.on && !(model->act == DTYPE_F32 && weights);
}

/* The state's bytes of an element, in the order of the bits. */
static void widths(const struct model *model, size_t width[OFFLOAD_STATES])
{
    width[0] = width[3] = sizeof(float);
    width[1] = width[2] = dtype_bytes(model->moments);
}

/* Where the share's state is, likewise. */
static void places(const struct model_group *group, char *place[OFFLOAD_STATES])
{
    place[0] = (char *)group->master;
    place[1] = group->moment1;
    place[2] = group->moment2;
    place[3] = (char *)group->ema;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t room_for(int64_t share)
{
    const int64_t part = (share / PARTS + UNIT - 1) / UNIT * UNIT;
    return least(share, part < LEAST ? LEAST : least(part, MOST));
}

void offload_layout(struct model *model, struct arena *arena)
{
    struct offload *offload = &model->offload;
    bool masters = false;
    size_t width[OFFLOAD_STATES];
    if (!offload->on) {
        return;
    }
    offload->room = 0;
    for (int g = 0; g < model->params.groups; g++) {
        const int64_t room = room_for(model->group[g].zero.share);
        offload->room = room > offload->room ? room : offload->room;
        masters = masters || offload_masters(model, &model->group[g]);
    }
    widths(model, width);
    for (int w = 0; w < OPS_WINDOWS; w++) {
        for (int k = 0; k < OFFLOAD_STATES; k++) {
            const bool passes = k == 0 ? masters : k < 3 || model->config->optimizer.ema > 0;
            offload->window[w][k] =
                passes ? arena_alloc(arena, (size_t)offload->room * width[k]) : NULL;
        }
    }
}

/* --- a pass --- */

struct pass {
    struct model *model;
    unsigned in, out, away; /* away: what passes through windows */
    int64_t share, room;
    size_t width[OFFLOAD_STATES];
    char *place[OFFLOAD_STATES];
};

static struct offload_part part_of(const struct pass *pass, int64_t number)
{
    const int64_t first = number * pass->room;
    const unsigned wanted = pass->in | pass->out;
    char *at[OFFLOAD_STATES] = {0};
    for (int k = 0; k < OFFLOAD_STATES; k++) {
        if (pass->place[k] != NULL && (wanted >> k & 1) != 0) {
            at[k] = (pass->away >> k & 1) != 0
                        ? (char *)pass->model->offload.window[number % OPS_WINDOWS][k]
                        : pass->place[k] + (size_t)first * pass->width[k];
        }
    }
    return (struct offload_part){.first = first,
                                 .count = least(pass->room, pass->share - first),
                                 .master = (float *)(void *)at[0],
                                 .moment1 = at[1],
                                 .moment2 = at[2],
                                 .ema = (float *)(void *)at[3]};
}

static void fetch(const struct pass *pass, int64_t number)
{
    const struct model *model = pass->model;
    const int64_t first = number * pass->room, count = least(pass->room, pass->share - first);
    const int window = (int)(number % OPS_WINDOWS);
    if (count > 0 && (pass->away & pass->in) == 0) { /* is it free? */
        model->ops->fetch(model->device, window, NULL, NULL, 0);
    }
    for (int k = 0; k < OFFLOAD_STATES && count > 0; k++) {
        if ((pass->away & pass->in) >> k & 1) {
            model->ops->fetch(model->device, window, model->offload.window[window][k],
                              pass->place[k] + (size_t)first * pass->width[k],
                              (size_t)count * pass->width[k]);
        }
    }
}

static void give_back(const struct pass *pass, int64_t number)
{
    const struct model *model = pass->model;
    const int64_t first = number * pass->room, count = least(pass->room, pass->share - first);
    const int window = (int)(number % OPS_WINDOWS);
    for (int k = 0; k < OFFLOAD_STATES; k++) {
        if ((pass->away & pass->out) >> k & 1) {
            model->ops->put(model->device, window, pass->place[k] + (size_t)first * pass->width[k],
                            model->offload.window[window][k], (size_t)count * pass->width[k]);
        }
    }
    if ((pass->away & pass->out) == 0) {
        model->ops->put(model->device, window, NULL, NULL, 0);
    }
}

/* What of this group is in the host's memory. */
static unsigned away_of(const struct model *model, const struct model_group *group)
{
    const unsigned moments = OFFLOAD_MOMENT1 | (group->moment2 != NULL ? OFFLOAD_MOMENT2 : 0),
                   average = group->ema != NULL ? OFFLOAD_EMA : 0;
    return !model->offload.on
               ? 0
               : moments | average | (offload_masters(model, group) ? OFFLOAD_MASTER : 0);
}

void offload_pass(struct model *model, enum param_group g, unsigned in, unsigned out,
                  void (*visit)(void *context, const struct offload_part *part), void *context)
{
    const struct model_group *group = &model->group[g];
    struct pass pass = {.model = model,
                        .in = in,
                        .out = out,
                        .away = away_of(model, group) & (in | out),
                        .share = group->zero.share};
    widths(model, pass.width);
    places(group, pass.place);
    pass.room = pass.away != 0 ? model->offload.room : pass.share;
    for (int64_t n = 0; n < OPS_WINDOWS - 1 && pass.away != 0; n++) {
        fetch(&pass, n);
    }
    for (int64_t n = 0; n * pass.room < pass.share; n++) {
        const struct offload_part part = part_of(&pass, n);
        if (pass.away == 0) {
            visit(context, &part);
            continue;
        }
        fetch(&pass, n + OPS_WINDOWS - 1);
        model->ops->fetched(model->device, (int)(n % OPS_WINDOWS));
        visit(context, &part);
        give_back(&pass, n);
    }
    if (pass.away != 0) {
        model->ops->window_settle(model->device);
    }
}

const struct param *offload_next(const struct model *model, enum param_group g,
                                 const struct offload_part *part, struct offload_walk *walk,
                                 struct offload_piece *piece)
{
    const struct zero *zero = &model->group[g].zero;
    const int64_t stop = part->first + part->count;
    for (; walk->index < model->params.count; walk->index++) {
        const struct param *param = &model->params.table[walk->index];
        const struct param_piece own = param_piece(param, zero, zero->comm->rank);
        if (param->group != g || own.first >= own.last) {
            continue;
        }
        const int64_t at = zero_place(zero, own.first), end = at + own.last - own.first,
                      from = at > walk->done ? at : walk->done, to = least(end, stop);
        if (from >= stop) { /* all behind it too: the table is in order of offsets */
            return NULL;
        }
        if (from < to) {
            walk->done = to;
            *piece = (struct offload_piece){
                .first = own.first + from - at, .at = from, .count = to - from};
            return param;
        }
        assert(end == walk->done);
    }
    return NULL;
}

void offload_wait(const struct model *model)
{
    if (model->offload.on) {
        model->ops->synchronize(model->device);
    }
}
