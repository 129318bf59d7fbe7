#include "trainer/model/arrival.h"

#include <assert.h>
#include <stdlib.h>

#include "trainer/model/model.h"

/* Pieces of a keeper that a rank has asked for: one lands, the next is on its way already. */
enum { AHEAD = 2 };
/* Elements of a piece: bytes of one message (COMM_PIECE) at 4 each. */
static const int64_t MOST = (int64_t)(COMM_PIECE / sizeof(float));

/* --- memory --- */

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Cuts the row where a part or a share ends; returns how many pieces there are. piece: NULL, or to
 * be filled in, with keeper. */
static int64_t cut(const struct model_group *group, struct arrival_piece *piece,
                   struct arrival_keeper *keeper)
{
    const struct reduction *parts = &group->reduction;
    const int64_t share = group->zero.share;
    int64_t count = 0;
    for (int64_t p = 0; p < parts->parts; p++) {
        for (int64_t at = parts->part[p].first; at < parts->part[p].end; count++) {
            const int64_t own = at / share,
                          end = least(parts->part[p].end, least((own + 1) * share, at + MOST));
            if (piece != NULL) {
                struct arrival_keeper *of = &keeper[own];
                of->first = of->end == 0 ? count : of->first;
                of->end = count + 1;
                piece[count] = (struct arrival_piece){.first = at, .count = end - at, .part = p};
            }
            at = end;
        }
    }
    return count;
}

enum status arrival_init(struct model *model)
{
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        struct arrival *arrival = &group->arrival;
        const bool fp8 = model->config->train.precision == CONFIG_FP8;
        *arrival = (struct arrival){0};
        if (group->reduction.part == NULL || g == PARAM_EMBED || fp8) {
            continue;
        }
        arrival->pieces = cut(group, NULL, NULL);
        arrival->piece = calloc((size_t)arrival->pieces, sizeof *arrival->piece);
        arrival->keeper = calloc((size_t)group->zero.comm->size, sizeof *arrival->keeper);
        if (arrival->piece == NULL || arrival->keeper == NULL) {
            return status_fail(STATUS_RESOURCE, "out of memory for %lld pieces of the weights",
                               (long long)arrival->pieces);
        }
        (void)cut(group, arrival->piece, arrival->keeper);
    }
    return STATUS_OK;
}

enum status arrival_reserve(struct model *model)
{
    enum { MOST_REQUESTS = 1 << 15 }; /* a quarter of a MiB */
    for (int g = 0; g < model->params.groups; g++) {
        const struct model_group *group = &model->group[g];
        struct comm *comm = group->zero.comm;
        if (arrival_wanted(model, (enum param_group)g)) {
            const struct arrival_keeper *own = &group->arrival.keeper[comm->rank];
            const int64_t count = own->end - own->first + (int64_t)AHEAD * (comm->size - 1);
            TRY(comm_rows_reserve(comm, least(count, MOST_REQUESTS / (2 * comm->size))));
        }
    }
    return STATUS_OK;
}

void arrival_free(struct model *model)
{
    arrival_finish(model);
    for (int g = 0; g < PARAM_GROUPS; g++) {
        free(model->group[g].arrival.piece);
        free(model->group[g].arrival.keeper);
        model->group[g].arrival = (struct arrival){0};
    }
}

bool arrival_wanted(const struct model *model, enum param_group g)
{
    const struct model_group *group = &model->group[g];
    return group->arrival.piece != NULL && comm_device_on_host(group->zero.comm);
}

bool arrival_has(const struct model_group *group, int64_t first, int64_t count)
{
    return !group->arrival.coming || first + count <= group->arrival.there;
}

/* --- pieces --- */

static void start_piece(const struct model *model, struct model_group *group,
                        struct arrival_piece *piece, int keeper)
{
    const size_t width = dtype_bytes(model->act);
    piece->rows =
        comm_spread_start(group->zero.comm, (char *)group->weights + (size_t)piece->first * width,
                          (size_t)piece->count * width, keeper);
}

static void finish_piece(struct model_group *group, struct arrival_keeper *keeper)
{
    struct arrival_piece *piece = &group->arrival.piece[keeper->done++];
    comm_rows_finish(group->zero.comm, piece->rows);
    piece->rows = NULL;
}

/* A rank asks for a few pieces of another, a keeper sends all of its own. */
static void ask(const struct model *model, struct model_group *group, int rank)
{
    struct arrival *arrival = &group->arrival;
    struct arrival_keeper *keeper = &arrival->keeper[rank];
    const bool own = rank == group->zero.comm->rank;
    while (keeper->next < keeper->end && (own || keeper->next < keeper->done + AHEAD)) {
        start_piece(model, group, &arrival->piece[keeper->next++], rank);
    }
}

/* Whether this rank waits for nothing more, or nobody for it. */
static void note_end(struct model_group *group)
{
    struct arrival *arrival = &group->arrival;
    struct comm *comm = group->zero.comm;
    bool all = true;
    for (int r = 0; r < comm->size; r++) {
        all = all && (r == comm->rank || arrival->keeper[r].done == arrival->keeper[r].end);
    }
    if (arrival->coming && all) {
        arrival->coming = false;
        comm_message_end(comm, &arrival->message);
    }
    const struct arrival_keeper *own = &arrival->keeper[comm->rank];
    arrival->sending = own->done < own->end;
}

/* --- a step --- */

void arrival_start(struct model *model, enum param_group g)
{
    struct model_group *group = &model->group[g];
    struct arrival *arrival = &group->arrival;
    struct comm *comm = group->zero.comm;
    const size_t share = (size_t)group->zero.share * dtype_bytes(model->act);
    assert(arrival_wanted(model, g) && !arrival->coming && !arrival->sending);
    comm_message_begin(comm, "gather of weights", (size_t)(comm->size - 1) * share,
                       &arrival->message);
    arrival->coming = arrival->sending = true;
    arrival->there = 0;
    for (int r = 0; r < comm->size; r++) {
        arrival->keeper[r].done = arrival->keeper[r].next = arrival->keeper[r].first;
        ask(model, group, r);
    }
}

/* All up to a part. */
static void use(const struct model *model, struct model_group *group, int64_t part)
{
    struct arrival *arrival = &group->arrival;
    const int64_t end = group->reduction.part[part].end;
    for (int r = 0; r < group->zero.comm->size && arrival->there < end; r++) {
        struct arrival_keeper *keeper = &arrival->keeper[r];
        while (r != group->zero.comm->rank && keeper->done < keeper->end &&
               arrival->piece[keeper->done].part <= part) {
            finish_piece(group, keeper);
            ask(model, group, r);
        }
    }
    arrival->there = end > arrival->there ? end : arrival->there;
    note_end(group);
}

void arrival_use(struct model *model, int64_t part)
{
    for (int g = 0; g < model->params.groups; g++) {
        if (model->group[g].arrival.coming) {
            use(model, &model->group[g], part);
        }
    }
}

static void move_on(const struct model *model, struct model_group *group)
{
    for (int r = 0; r < group->zero.comm->size; r++) {
        struct arrival_keeper *keeper = &group->arrival.keeper[r];
        while (keeper->done < keeper->next &&
               comm_rows_test(group->zero.comm, group->arrival.piece[keeper->done].rows)) {
            finish_piece(group, keeper);
            ask(model, group, r);
        }
    }
    note_end(group);
}

void arrival_progress(struct model *model)
{
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        if (group->arrival.coming || group->arrival.sending) {
            move_on(model, group);
        }
    }
}

void arrival_finish(struct model *model)
{
    for (int g = 0; g < model->params.groups; g++) {
        struct model_group *group = &model->group[g];
        struct arrival *arrival = &group->arrival;
        if (arrival->coming) {
            use(model, group, group->reduction.parts - 1);
        }
        while (arrival->sending) {
            finish_piece(group, &arrival->keeper[group->zero.comm->rank]);
            note_end(group);
        }
    }
}
