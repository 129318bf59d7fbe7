#include "trainer/model/reduction.h"

#include <assert.h>
#include <stdlib.h>

#include "trainer/model/model.h"

enum { ALIGNMENT = 64 };

/* --- memory --- */

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* What each part of a group has, up to the end of the padding. */
static void find_parts(struct reduction *reduction, const struct params *params,
                       enum param_group group, int64_t count)
{
    int64_t end = count;
    for (int64_t p = reduction->parts - 1; p >= 0; p--) {
        const int64_t begin = params->begin[group][p] / ALIGNMENT * ALIGNMENT,
                      up = begin < params->begin[group][p] ? begin + ALIGNMENT : begin,
                      first = p == 0 ? 0 : least(up, end);
        reduction->part[p] = (struct reduction_part){.first = first, .end = end};
        end = first;
    }
}

static enum status init_group(struct model *model, enum param_group g)
{
    struct model_group *group = &model->group[g];
    struct reduction *reduction = &group->reduction;
    const int64_t ranks = group->zero.comm->size, parts = model->params.parts,
                  most = ranks > 1 ? group->zero.share / (ranks - 1) : 0;
    *reduction = (struct reduction){.parts = parts,
                                    .most = most > ALIGNMENT ? most / ALIGNMENT * ALIGNMENT : most};
    if (ranks == 1 || group->shards.on || most == 0) {
        return STATUS_OK;
    }
    /* a piece ends where it is as long as it may be, or its part or share ends */
    reduction->room = group->zero.count / reduction->most + parts + ranks;
    reduction->part = calloc((size_t)parts, sizeof *reduction->part);
    reduction->closed = calloc((size_t)parts, sizeof *reduction->closed);
    reduction->order = calloc((size_t)parts, sizeof *reduction->order);
    reduction->sent = calloc((size_t)reduction->room, sizeof(struct comm_rows *));
    if (reduction->part == NULL || reduction->closed == NULL || reduction->order == NULL ||
        reduction->sent == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for the reduction of %lld parts",
                           (long long)parts);
    }
    find_parts(reduction, &model->params, g, group->zero.count);
    return STATUS_OK;
}

enum status reduction_init(struct model *model)
{
    for (int g = 0; g < model->params.groups; g++) {
        TRY(init_group(model, (enum param_group)g));
    }
    return STATUS_OK;
}

enum status reduction_reserve(struct model *model)
{
    enum { MOST_REQUESTS = 1 << 15 }; /* a quarter of a MiB */
    for (int g = 0; model->training && g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        struct comm *comm = group->zero.comm;
        if (group->reduction.part != NULL && comm_device_on_host(comm)) {
            TRY(comm_rows_reserve(
                comm, least(group->reduction.room + 1, MOST_REQUESTS / (2 * comm->size))));
        }
    }
    return STATUS_OK;
}

void reduction_free(struct model *model)
{
    for (int g = 0; g < PARAM_GROUPS; g++) {
        struct reduction *reduction = &model->group[g].reduction;
        free(reduction->part);
        free(reduction->closed);
        free(reduction->order);
        free(reduction->sent);
        *reduction = (struct reduction){0};
    }
}

/* --- which groups --- */

bool reduction_of_gpu(const struct config *config, enum param_group group, int64_t ranks,
                      int64_t experts_ranks, int64_t parts)
{
    const bool recorded = config->router.dispatch == CONFIG_PADDED && experts_ranks > 1,
               sharded = config->parallel.zero >= 2 && group != PARAM_EXPERT,
               inside = config->parallel.tp * config->parallel.cp > 1;
    return ranks > 1 && ranks <= parts && !recorded && !sharded && !inside && group != PARAM_EMBED;
}

bool reduction_wanted(const struct model *model, enum param_group g)
{
    const struct model_group *group = &model->group[g];
    const struct reduction *reduction = &group->reduction;
    const struct comm *comm = group->zero.comm;
    if (reduction->part == NULL || g == PARAM_EMBED) {
        return false;
    }
    if (comm_device_on_host(comm)) {
        return comm->size <= COMM_MOST_RANKS;
    }
    int64_t parts = 0;
    for (int64_t p = 0; p < reduction->parts; p++) {
        parts += reduction->part[p].first < reduction->part[p].end;
    }
    return comm_device_reduces(comm) &&
           reduction_of_gpu(model->config, g, comm->size, model->mesh->experts.size, parts);
}

/* --- pieces --- */

static enum dtype dtype_of(const struct model *model)
{
    return model->gradients.fixed ? DTYPE_I64 : DTYPE_F32;
}

/* Where element `at` of a group's gradients adds up. */
static char *sums_at(const struct model *model, const struct model_group *group, int64_t at)
{
    char *sums = model->gradients.fixed ? (char *)group->sums : (char *)group->grads;
    return sums + (size_t)at * dtype_bytes(dtype_of(model));
}

/* The piece that begins at `at`, at most `most` elements; false: there is none yet. */
static bool find_piece(const struct model_group *group, struct reduction_at *at, int64_t most,
                       struct reduction_piece *piece)
{
    const struct reduction *reduction = &group->reduction;
    while (at->part < reduction->count) {
        const struct reduction_part *part = &reduction->part[reduction->order[at->part]];
        const int64_t first = at->element > part->first ? at->element : part->first,
                      keeper = first / group->zero.share,
                      end = least(part->end, (keeper + 1) * group->zero.share);
        if (first < part->end) {
            *piece = (struct reduction_piece){
                .first = first, .count = least(end - first, most), .keeper = (int)keeper};
            return true;
        }
        *at = (struct reduction_at){.part = at->part + 1};
    }
    return false;
}

static void pass_by(struct reduction_at *at, const struct reduction_piece *piece)
{
    at->element = piece->first + piece->count;
}

size_t reduction_spare(const struct model *model, enum param_group g)
{
    const struct model_group *group = &model->group[g];
    const struct reduction *reduction = &group->reduction;
    const int64_t share = group->zero.share, others = group->zero.comm->size - 1;
    int64_t largest = 0; /* of anybody's pieces */
    if (reduction->part == NULL || g == PARAM_EMBED || model->gradients.fixed ||
        group->muon.owner != NULL) {
        return 0;
    }
    for (int64_t p = 0; p < reduction->parts; p++) {
        const struct reduction_part *part = &reduction->part[p];
        for (int64_t at = part->first; at < part->end;) {
            const int64_t end = least(part->end, (at / share + 1) * share),
                          count = least(end - at, reduction->most);
            largest = count > largest ? count : largest;
            at = end;
        }
    }
    return (size_t)(share - largest * others) * sizeof(float);
}

/* --- on the host --- */

static size_t bytes_of(const struct model *model, const struct reduction_piece *piece)
{
    return (size_t)piece->count * dtype_bytes(dtype_of(model));
}

/* What others keep leaves. */
static void send(const struct model *model, struct model_group *group)
{
    struct reduction *reduction = &group->reduction;
    struct reduction_piece piece;
    while (find_piece(group, &reduction->sending, reduction->most, &piece)) {
        if (piece.keeper != group->zero.comm->rank) {
            assert(reduction->next < reduction->room);
            reduction->sent[reduction->next++] =
                comm_parts_start(group->zero.comm, NULL, sums_at(model, group, piece.first),
                                 bytes_of(model, &piece), piece.keeper);
        }
        pass_by(&reduction->sending, &piece);
    }
}

/* The next piece of this rank's, where none is on its way. */
static void take(const struct model *model, struct model_group *group)
{
    struct reduction *reduction = &group->reduction;
    struct reduction_piece *piece = &reduction->piece;
    while (reduction->coming == NULL &&
           find_piece(group, &reduction->taking, reduction->most, piece)) {
        if (piece->keeper == group->zero.comm->rank) {
            reduction->coming = comm_parts_start(group->zero.comm, group->reduced, NULL,
                                                 bytes_of(model, piece), piece->keeper);
        }
        pass_by(&reduction->taking, piece);
    }
}

static void add_integers(int64_t *restrict sum, const int64_t *restrict x, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        sum[i] += x[i];
    }
}

/* sum += x, elements of a piece. */
static void add(const struct model *model, void *sum, void *x, int64_t count)
{
    if (model->gradients.fixed) {
        add_integers(sum, x, count);
    } else {
        model->ops->add(model->device, tensor_1d(sum, DTYPE_F32, count),
                        tensor_1d(x, DTYPE_F32, count));
    }
}

/* The others' are there: the sum over ranks, in rank order, stands where this rank's own was. A sum
 * of two is the same either way round. */
static void land(const struct model *model, struct model_group *group)
{
    struct reduction *reduction = &group->reduction;
    const struct reduction_piece *piece = &reduction->piece;
    const size_t bytes = bytes_of(model, piece);
    const int before = group->zero.comm->rank, others = group->zero.comm->size - 1;
    char *sum = sums_at(model, group, piece->first), *room = (char *)group->reduced;
    comm_rows_finish(group->zero.comm, reduction->coming);
    reduction->coming = NULL;
    for (int r = 1; r < before; r++) {
        add(model, room, room + (size_t)r * bytes, piece->count);
    }
    if (before > 0) {
        add(model, sum, room, piece->count);
    }
    for (int r = before; r < others; r++) {
        add(model, sum, room + (size_t)r * bytes, piece->count);
    }
}

static void move_on(const struct model *model, struct model_group *group)
{
    struct reduction *reduction = &group->reduction;
    struct comm *comm = group->zero.comm;
    while (reduction->coming != NULL && comm_rows_test(comm, reduction->coming)) {
        land(model, group);
        take(model, group);
    }
    while (reduction->first < reduction->next &&
           comm_rows_test(comm, reduction->sent[reduction->first])) {
        comm_rows_finish(comm, reduction->sent[reduction->first++]);
    }
}

/* All that others keep is under way before this waits: whoever waits for it gets it. */
static void finish_on_host(const struct model *model, struct model_group *group)
{
    struct reduction *reduction = &group->reduction;
    send(model, group);
    for (take(model, group); reduction->coming != NULL; take(model, group)) {
        land(model, group);
    }
    while (reduction->first < reduction->next) {
        comm_rows_finish(group->zero.comm, reduction->sent[reduction->first++]);
    }
    if (model->gradients.fixed) { /* where decoding leaves them alone */
        const int64_t own = group->zero.comm->rank * group->zero.share;
        model->ops->copy(model->device, group->reduced, sums_at(model, group, own),
                         (size_t)group->zero.share * sizeof *group->sums);
    }
}

/* --- on a device with memory of its own --- */

static void start_on_device(const struct model *model, struct model_group *group)
{
    struct reduction *reduction = &group->reduction;
    struct comm *comm = group->zero.comm;
    const size_t width = dtype_bytes(dtype_of(model));
    struct reduction_piece piece;
    while (find_piece(group, &reduction->taking, group->zero.share, &piece)) {
        const int64_t at = piece.first - piece.keeper * group->zero.share;
        comm_device_reduce_start(comm, (char *)group->reduced + (size_t)at * width,
                                 sums_at(model, group, piece.first), piece.count, dtype_of(model),
                                 piece.keeper);
        reduction->mark = comm_device_mark(comm);
        pass_by(&reduction->taking, &piece);
    }
}

/* --- a step --- */

void reduction_clear(struct model *model)
{
    for (int g = 0; g < model->params.groups; g++) {
        struct reduction *reduction = &model->group[g].reduction;
        assert(reduction->coming == NULL && reduction->first == reduction->next);
        for (int64_t p = 0; p < reduction->parts && reduction->closed != NULL; p++) {
            reduction->closed[p] = false;
        }
        reduction->begun = false;
        reduction->count = reduction->first = reduction->next = 0;
        reduction->sending = reduction->taking = (struct reduction_at){0};
        reduction->mark = (struct comm_mark){0};
    }
}

static void close_part(struct reduction *reduction, int64_t part)
{
    if (!reduction->closed[part]) {
        reduction->closed[part] = reduction->begun = true;
        reduction->order[reduction->count++] = part;
    }
}

void reduction_close(struct model *model, int64_t part)
{
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        if (!reduction_wanted(model, (enum param_group)g)) {
            continue;
        }
        close_part(&group->reduction, part);
        if (comm_device_on_host(group->zero.comm)) {
            send(model, group);
            take(model, group);
        }
    }
}

void reduction_start(struct model *model)
{
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        if (group->reduction.begun && !comm_device_on_host(group->zero.comm)) {
            start_on_device(model, group);
        }
    }
}

void reduction_progress(struct model *model)
{
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        if (group->reduction.begun && comm_device_on_host(group->zero.comm)) {
            move_on(model, group);
        }
    }
}

void reduction_settle(struct model *model, enum param_group g)
{
    struct model_group *group = &model->group[g];
    struct reduction *reduction = &group->reduction;
    for (int64_t p = reduction->parts - 1; p >= 0; p--) {
        close_part(reduction, p);
    }
    if (comm_device_on_host(group->zero.comm)) {
        finish_on_host(model, group);
    } else {
        start_on_device(model, group);
        comm_device_wait(group->zero.comm, &reduction->mark);
        if (!model->gradients.fixed) {
            model->ops->copy(model->device, group->shard, group->reduced,
                             (size_t)group->zero.share * sizeof *group->shard);
        }
    }
}
