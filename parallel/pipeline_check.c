#include <stdlib.h>

#include "parallel/pipeline.h"

/* What has been done with a (stage, batch): the place is where forward and backward must be. */
enum { DONE_FORWARD = 1, DONE_INPUT = 2, DONE_WEIGHTS = 4, DONE_ALL = 7 };
/* ... and what has come for it from another rank. */
enum { HERE_ACTIVATIONS = 8, HERE_GRADIENT = 16 };

struct sent {
    int64_t stage; /* that is to use it */
    int32_t batch;
    bool gradient;
};

/* Messages between two ranks, first in, first out. */
struct queue {
    struct sent *sent; /* [room] owned */
    int64_t first, count, room;
};

struct check {
    const struct pipeline *pipeline;
    unsigned char *state; /* [stages, batches] owned */
    struct queue *queue;  /* [ranks, ranks] owned: from, to */
    int64_t *at;          /* [ranks] owned: next action */
    struct pipeline_room *room;
    int64_t *held, *waiting; /* [ranks] owned */
};

static unsigned char *state_of(const struct check *c, int64_t stage, int64_t batch)
{
    return &c->state[stage * c->pipeline->shape.batches + batch];
}

static enum status wrong(const struct check *c, int64_t rank, const char *why)
{
    const struct pipeline_action *a = &c->pipeline->track[rank].action[c->at[rank]];
    return status_fail(STATUS_INTERNAL,
                       "pipeline %s: rank %lld, action %lld (kind %d, part %d, micro-batch %d): %s",
                       pipeline_names[c->pipeline->shape.schedule], (long long)rank,
                       (long long)c->at[rank], (int)a->kind, (int)a->part, (int)a->batch, why);
}

/* The stage that (part, batch) of a rank is; -1: the rank has no such. */
static int64_t stage_at(const struct check *c, int64_t rank, int32_t part, int32_t batch)
{
    const struct pipeline_shape *shape = &c->pipeline->shape;
    if (part < 0 || part >= shape->parts || batch < 0 || batch >= shape->batches) {
        return -1;
    }
    const int64_t stage = pipeline_stage(shape, rank, part);
    const struct pipeline_place place = pipeline_place(shape, stage, batch);
    return place.rank == rank && place.part == part ? stage : -1;
}

/* Whether what `stage` computes from is on its rank: made there, or received. */
static bool is_here(const struct check *c, int64_t rank, int64_t stage, int32_t batch,
                    bool gradient)
{
    const struct pipeline_shape *shape = &c->pipeline->shape;
    const int64_t from = stage + (gradient ? 1 : -1);
    if (from < 0 || from >= pipeline_stages(shape)) {
        return true;
    }
    const bool own = pipeline_place(shape, from, batch).rank == rank;
    return own ? *state_of(c, from, batch) & (gradient ? DONE_INPUT : DONE_FORWARD)
               : *state_of(c, stage, batch) & (gradient ? HERE_GRADIENT : HERE_ACTIVATIONS);
}

/* `bits` of DONE_... of one (part, batch). */
static enum status compute(struct check *c, int64_t rank, int32_t part, int32_t batch,
                           unsigned bits)
{
    const int64_t stage = stage_at(c, rank, part, batch);
    if (stage < 0) {
        return wrong(c, rank, "this rank has no such stage");
    }
    unsigned char *state = state_of(c, stage, batch);
    const unsigned before = bits & DONE_FORWARD ? 0
                            : bits & DONE_INPUT ? DONE_FORWARD
                                                : DONE_FORWARD | DONE_INPUT;
    if ((*state & DONE_ALL) != before) {
        return wrong(c, rank, *state & bits ? "done twice" : "before what it needs");
    }
    if (!(bits == DONE_WEIGHTS) && !is_here(c, rank, stage, batch, (bits & DONE_FORWARD) == 0)) {
        return wrong(c, rank, "what it computes from is not here");
    }
    const unsigned used = bits & DONE_FORWARD ? HERE_ACTIVATIONS : HERE_GRADIENT;
    c->waiting[rank] -= bits != DONE_WEIGHTS && (*state & used) != 0;
    c->held[rank] += (bits & DONE_FORWARD) != 0;
    c->room[rank].held = c->held[rank] > c->room[rank].held ? c->held[rank] : c->room[rank].held;
    c->held[rank] -= (bits & DONE_WEIGHTS) != 0;
    *state = (unsigned char)(*state | bits);
    return STATUS_OK;
}

static struct queue *queue_of(const struct check *c, int64_t from, int64_t to)
{
    return &c->queue[from * c->pipeline->shape.ranks + to];
}

static enum status send(struct check *c, int64_t rank, const struct pipeline_action *a)
{
    const struct pipeline_shape *shape = &c->pipeline->shape;
    const int64_t stage = stage_at(c, rank, a->part, a->batch),
                  next = stage + (a->gradient ? -1 : 1);
    if (stage < 0 || next < 0 || next >= pipeline_stages(shape) ||
        pipeline_place(shape, next, a->batch).rank != a->peer || a->peer == rank) {
        return wrong(c, rank, "nobody there needs it");
    }
    if (!(*state_of(c, stage, a->batch) & (a->gradient ? DONE_INPUT : DONE_FORWARD))) {
        return wrong(c, rank, "sent before it is made");
    }
    struct queue *queue = queue_of(c, rank, a->peer);
    if (queue->count == queue->room) {
        const int64_t room = 2 * queue->room + 8;
        struct sent *more = realloc(queue->sent, (size_t)room * sizeof *more);
        if (more == NULL) {
            return status_fail(STATUS_RESOURCE, "out of memory for a pipeline's messages");
        }
        queue->sent = more;
        queue->room = room;
    }
    queue->sent[queue->count++] = (struct sent){next, a->batch, a->gradient};
    return STATUS_OK;
}

/* *waits: nothing has come yet. */
static enum status receive(struct check *c, int64_t rank, const struct pipeline_action *a,
                           bool *waits)
{
    if (a->peer < 0 || a->peer >= c->pipeline->shape.ranks) {
        return wrong(c, rank, "from no rank");
    }
    struct queue *queue = queue_of(c, a->peer, rank);
    const int64_t stage = stage_at(c, rank, a->part, a->batch);
    *waits = queue->first == queue->count;
    if (*waits) {
        return STATUS_OK;
    }
    const struct sent *sent = &queue->sent[queue->first++];
    if (sent->stage != stage || sent->batch != a->batch || sent->gradient != a->gradient) {
        return wrong(c, rank, "another message comes first");
    }
    unsigned char *state = state_of(c, stage, a->batch);
    const unsigned bit = a->gradient ? HERE_GRADIENT : HERE_ACTIVATIONS;
    if (*state & bit) {
        return wrong(c, rank, "received twice");
    }
    *state = (unsigned char)(*state | bit);
    c->waiting[rank]++;
    c->room[rank].waiting =
        c->waiting[rank] > c->room[rank].waiting ? c->waiting[rank] : c->room[rank].waiting;
    return STATUS_OK;
}

static enum status act(struct check *c, int64_t rank, bool *waits)
{
    const struct pipeline_action *a = &c->pipeline->track[rank].action[c->at[rank]];
    switch (a->kind) {
    case PIPELINE_FORWARD:
        return compute(c, rank, a->part, a->batch, DONE_FORWARD);
    case PIPELINE_BACKWARD:
        return compute(c, rank, a->part, a->batch, DONE_INPUT | DONE_WEIGHTS);
    case PIPELINE_BACKWARD_INPUT:
        return compute(c, rank, a->part, a->batch, DONE_INPUT);
    case PIPELINE_BACKWARD_WEIGHTS:
        return compute(c, rank, a->part, a->batch, DONE_WEIGHTS);
    case PIPELINE_PAIR: /* neither may need the other */
        if (a->part == a->back_part && a->batch == a->back_batch) {
            return wrong(c, rank, "a pair of one micro-batch");
        }
        TRY(compute(c, rank, a->back_part, a->back_batch, DONE_INPUT | DONE_WEIGHTS));
        c->held[rank]++; /* both are there at once */
        TRY(compute(c, rank, a->part, a->batch, DONE_FORWARD));
        c->held[rank]--;
        return STATUS_OK;
    case PIPELINE_SEND:
        return send(c, rank, a);
    case PIPELINE_RECEIVE:
        return receive(c, rank, a, waits);
    }
    return wrong(c, rank, "no such kind");
}

static enum status run_all(struct check *c)
{
    const struct pipeline *pipeline = c->pipeline;
    for (bool moved = true; moved;) {
        moved = false;
        for (int64_t r = 0; r < pipeline->shape.ranks; r++) {
            bool waits = false;
            while (c->at[r] < pipeline->track[r].count && !waits) {
                TRY(act(c, r, &waits));
                c->at[r] += !waits;
                moved = moved || !waits;
            }
        }
    }
    return STATUS_OK;
}

static enum status check_end(const struct check *c)
{
    const struct pipeline_shape *shape = &c->pipeline->shape;
    for (int64_t r = 0; r < shape->ranks; r++) {
        if (c->at[r] < c->pipeline->track[r].count) {
            return wrong(c, r, "waits forever");
        }
    }
    for (int64_t i = 0; i < pipeline_stages(shape) * shape->batches; i++) {
        if ((c->state[i] & DONE_ALL) != DONE_ALL) {
            return status_fail(STATUS_INTERNAL,
                               "pipeline %s: stage %lld of micro-batch %lld is not finished",
                               pipeline_names[shape->schedule], (long long)(i / shape->batches),
                               (long long)(i % shape->batches));
        }
    }
    for (int64_t i = 0; i < shape->ranks * shape->ranks; i++) {
        if (c->queue[i].first != c->queue[i].count) {
            return status_fail(STATUS_INTERNAL,
                               "pipeline %s: rank %lld never receives what rank %lld sends",
                               pipeline_names[shape->schedule], (long long)(i % shape->ranks),
                               (long long)(i / shape->ranks));
        }
    }
    return STATUS_OK;
}

enum status pipeline_check(const struct pipeline *pipeline, struct pipeline_room *room)
{
    const struct pipeline_shape *shape = &pipeline->shape;
    const size_t ranks = (size_t)shape->ranks;
    struct check c = {.pipeline = pipeline,
                      .state = calloc((size_t)(pipeline_stages(shape) * shape->batches), 1),
                      .queue = calloc(ranks * ranks, sizeof *c.queue),
                      .at = calloc(ranks, sizeof *c.at),
                      .room = calloc(ranks, sizeof *c.room),
                      .held = calloc(ranks, sizeof *c.held),
                      .waiting = calloc(ranks, sizeof *c.waiting)};
    const bool good = c.state != NULL && c.queue != NULL && c.at != NULL && c.room != NULL &&
                      c.held != NULL && c.waiting != NULL;
    enum status status =
        good ? run_all(&c) : status_fail(STATUS_RESOURCE, "out of memory to check a pipeline");
    status = status == STATUS_OK ? check_end(&c) : status;
    for (size_t r = 0; r < ranks && good && room != NULL; r++) {
        room[r] = c.room[r];
    }
    for (size_t i = 0; i < ranks * ranks && c.queue != NULL; i++) {
        free(c.queue[i].sent);
    }
    void *const owned[] = {c.state, c.queue, c.at, c.room, c.held, c.waiting};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++) {
        free(owned[i]);
    }
    return status;
}
