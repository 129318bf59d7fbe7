#include "parallel/timeline.h"

#include <assert.h>
#include <stdlib.h>

struct play {
    const struct pipeline *pipeline;
    const struct timeline_costs *costs;
    struct timeline *out;
    double *sent[2];       /* [gradient]: [stages, batches] owned: when a stage's result left; < 0:
                              not yet */
    int64_t *at;           /* [ranks] owned: next action */
    double *clock, *holds; /* [ranks] owned */
};

static double *sent_of(const struct play *p, bool gradient, int64_t stage, int64_t batch)
{
    return &p->sent[gradient][stage * p->pipeline->shape.batches + batch];
}

static double kept(const struct play *p, int64_t rank, int32_t part)
{
    const int64_t stage = pipeline_stage(&p->pipeline->shape, rank, part);
    return p->costs->kept != NULL ? p->costs->kept[stage] : 1;
}

static void hold(struct play *p, int64_t rank, double more)
{
    p->holds[rank] += more;
    p->out->kept[rank] = p->holds[rank] > p->out->kept[rank] ? p->holds[rank] : p->out->kept[rank];
}

/* s that an action computes. */
static double length(const struct play *p, int64_t rank, const struct pipeline_action *a)
{
    const struct timeline_costs *costs = p->costs;
    const struct pipeline_shape *shape = &p->pipeline->shape;
    const int64_t stage = pipeline_stage(shape, rank, a->part);
    switch (a->kind) {
    case PIPELINE_FORWARD:
        return costs->forward[stage];
    case PIPELINE_BACKWARD:
        return costs->input[stage] + costs->weights[stage];
    case PIPELINE_BACKWARD_INPUT:
        return costs->input[stage];
    case PIPELINE_BACKWARD_WEIGHTS:
        return costs->weights[stage];
    case PIPELINE_PAIR: {
        const int64_t other = pipeline_stage(shape, rank, a->back_part);
        return costs->pair != NULL
                   ? costs->pair[stage]
                   : costs->forward[stage] + costs->input[other] + costs->weights[other];
    }
    default:
        return 0;
    }
}

/* Activations that an action begins and ends to keep. */
static void note_kept(struct play *p, int64_t rank, const struct pipeline_action *a)
{
    if (a->kind == PIPELINE_FORWARD || a->kind == PIPELINE_PAIR) {
        hold(p, rank, kept(p, rank, a->part));
    }
    if (a->kind == PIPELINE_BACKWARD || a->kind == PIPELINE_BACKWARD_WEIGHTS) {
        hold(p, rank, -kept(p, rank, a->part));
    }
    if (a->kind == PIPELINE_PAIR) {
        hold(p, rank, -kept(p, rank, a->back_part));
    }
}

/* When a message to (part, batch) is there; < 0: nobody knows yet. */
static double arrival(const struct play *p, int64_t rank, const struct pipeline_action *a)
{
    const int64_t stage = pipeline_stage(&p->pipeline->shape, rank, a->part);
    const double left = *sent_of(p, a->gradient, stage + (a->gradient ? 1 : -1), a->batch);
    return left < 0 ? -1 : left + p->costs->hop;
}

/* The rank's next action, if what it needs is known. */
static bool advance(struct play *p, int64_t rank)
{
    const struct pipeline_track *track = &p->pipeline->track[rank];
    if (p->at[rank] == track->count) {
        return false;
    }
    const struct pipeline_action *a = &track->action[p->at[rank]];
    const double start = p->clock[rank], takes = length(p, rank, a);
    double end = start + takes;
    if (a->kind == PIPELINE_RECEIVE) {
        const double there = arrival(p, rank, a);
        if (there < 0) {
            return false;
        }
        end = there > end ? there : end;
    }
    if (a->kind == PIPELINE_SEND) {
        *sent_of(p, a->gradient, pipeline_stage(&p->pipeline->shape, rank, a->part), a->batch) =
            end;
    }
    note_kept(p, rank, a);
    p->out->span[rank][p->at[rank]++] = (struct timeline_span){start, end};
    p->out->busy[rank] += takes;
    p->clock[rank] = end;
    return true;
}

static void play_all(struct play *p)
{
    double busiest = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (int64_t r = 0; r < p->out->ranks; r++) {
            while (advance(p, r)) {
                moved = true;
            }
        }
    }
    for (int64_t r = 0; r < p->out->ranks; r++) {
        assert(p->at[r] == p->pipeline->track[r].count);
        p->out->seconds = p->clock[r] > p->out->seconds ? p->clock[r] : p->out->seconds;
        busiest = p->out->busy[r] > busiest ? p->out->busy[r] : busiest;
    }
    p->out->idle = p->out->seconds - busiest;
}

static bool alloc(struct play *p)
{
    const size_t ranks = (size_t)p->out->ranks,
                 marks =
                     (size_t)(pipeline_stages(&p->pipeline->shape) * p->pipeline->shape.batches);
    p->at = calloc(ranks, sizeof *p->at);
    p->clock = calloc(ranks, sizeof *p->clock);
    p->holds = calloc(ranks, sizeof *p->holds);
    p->out->busy = calloc(ranks, sizeof *p->out->busy);
    p->out->kept = calloc(ranks, sizeof *p->out->kept);
    p->out->span = calloc(ranks, sizeof *p->out->span);
    bool good = p->at != NULL && p->clock != NULL && p->holds != NULL && p->out->busy != NULL &&
                p->out->kept != NULL && p->out->span != NULL;
    for (int i = 0; i < 2 && good; i++) {
        p->sent[i] = malloc(marks * sizeof *p->sent[i]);
        good = p->sent[i] != NULL;
        for (size_t k = 0; k < marks && good; k++) {
            p->sent[i][k] = -1;
        }
    }
    for (size_t r = 0; r < ranks && good; r++) {
        p->out->span[r] = malloc((size_t)p->pipeline->track[r].count * sizeof *p->out->span[r]);
        good = p->out->span[r] != NULL;
    }
    return good;
}

enum status timeline_play(struct timeline *timeline, const struct pipeline *pipeline,
                          const struct timeline_costs *costs)
{
    *timeline = (struct timeline){.ranks = pipeline->shape.ranks};
    struct play p = {.pipeline = pipeline, .costs = costs, .out = timeline};
    const bool good = alloc(&p);
    if (good) {
        play_all(&p);
    }
    void *const owned[] = {p.at, p.clock, p.holds, p.sent[0], p.sent[1]};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++) {
        free(owned[i]);
    }
    return good ? STATUS_OK
                : status_fail(STATUS_RESOURCE, "out of memory for a pipeline of %lld micro-batches",
                              (long long)pipeline->shape.batches);
}

void timeline_free(struct timeline *timeline)
{
    for (int64_t r = 0; r < timeline->ranks && timeline->span != NULL; r++) {
        free(timeline->span[r]);
    }
    free(timeline->span);
    free(timeline->busy);
    free(timeline->kept);
    *timeline = (struct timeline){0};
}
