#include "parallel/pipeline.h"

#include <assert.h>
#include <stdlib.h>

const char *const pipeline_names[PIPELINE_SCHEDULES] = {
    [PIPELINE_1F1B] = "1f1b",
    [PIPELINE_INTERLEAVED] = "interleaved",
    [PIPELINE_ZERO_BUBBLE] = "zero_bubble",
    [PIPELINE_PAIRS] = "pairs",
    [PIPELINE_DUALPIPE] = "dualpipe",
    [PIPELINE_DUALPIPE_V] = "dualpipe_v",
};

/* --- stages --- */

int64_t pipeline_stages(const struct pipeline_shape *shape)
{
    return shape->schedule == PIPELINE_DUALPIPE ? shape->ranks : shape->ranks * shape->parts;
}

int64_t pipeline_stage(const struct pipeline_shape *shape, int64_t rank, int64_t part)
{
    if (shape->schedule == PIPELINE_INTERLEAVED) {
        return part * shape->ranks + rank;
    }
    return part == 0 ? rank : pipeline_stages(shape) - 1 - rank;
}

/* dualpipe: the half that enters at the last rank. */
static bool is_reverse(const struct pipeline_shape *shape, int64_t batch)
{
    return shape->schedule == PIPELINE_DUALPIPE && batch >= shape->batches / 2;
}

struct pipeline_place pipeline_place(const struct pipeline_shape *shape, int64_t stage,
                                     int64_t batch)
{
    const int64_t p = shape->ranks, last = pipeline_stages(shape) - 1;
    if (shape->schedule == PIPELINE_INTERLEAVED) {
        return (struct pipeline_place){stage % p, stage / p};
    }
    const bool back = is_reverse(shape, batch) || stage >= p;
    return (struct pipeline_place){back ? last - stage : stage, back};
}

static const struct {
    int64_t least, most; /* parts */
} parts_of[PIPELINE_SCHEDULES] = {
    [PIPELINE_1F1B] = {1, 1},  [PIPELINE_INTERLEAVED] = {2, 1024}, [PIPELINE_ZERO_BUBBLE] = {1, 1},
    [PIPELINE_PAIRS] = {1, 1}, [PIPELINE_DUALPIPE] = {2, 2},       [PIPELINE_DUALPIPE_V] = {2, 2},
};

enum status pipeline_fits(const struct pipeline_shape *shape)
{
    const char *name = pipeline_names[shape->schedule];
    const long long p = shape->ranks, batches = shape->batches, parts = shape->parts;
    if (p < 1 || batches < 1 || parts < parts_of[shape->schedule].least ||
        parts > parts_of[shape->schedule].most || (shape->schedule == PIPELINE_PAIRS && p > 1)) {
        return status_fail(STATUS_USAGE, "pipeline %s: not of %lld ranks, %lld stages a rank", name,
                           p, parts);
    }
    if (shape->schedule == PIPELINE_INTERLEAVED && batches % p != 0) {
        return status_fail(STATUS_USAGE,
                           "pipeline %s needs a multiple of its %lld ranks in micro-batches, "
                           "not %lld",
                           name, p, batches);
    }
    if (shape->schedule == PIPELINE_DUALPIPE &&
        (p % 2 != 0 || batches % 2 != 0 || batches < 2 * p)) {
        return status_fail(STATUS_USAGE,
                           "pipeline %s needs an even number of ranks and an even number of "
                           "micro-batches, at least 2 x %lld, not %lld",
                           name, p, batches);
    }
    if (shape->schedule == PIPELINE_DUALPIPE_V && batches < 2 * p) {
        return status_fail(STATUS_USAGE,
                           "pipeline %s needs at least 2 x %lld micro-batches, not %lld", name, p,
                           batches);
    }
    return STATUS_OK;
}

/* --- what a rank computes --- */

enum { PARTS_MOST = 1024 };

/* Writes a track; micro-batches of a part come in order. */
struct writer {
    const struct pipeline_shape *shape;
    struct pipeline_track *track;
    int32_t forwards[PARTS_MOST], backwards[PARTS_MOST]; /* written */
    int64_t taken; /* of the gradients of weights put off, oldest first: where the search goes on */
};

static void add(struct pipeline_track *track, struct pipeline_action action)
{
    assert(track->count < track->room);
    track->action[track->count++] = action;
}

static int32_t batch_of(const struct writer *w, int part, int32_t count)
{
    const bool second = w->shape->schedule == PIPELINE_DUALPIPE && part == 1;
    return count + (second ? (int32_t)(w->shape->batches / 2) : 0);
}

static void forward(struct writer *w, int part)
{
    add(w->track, (struct pipeline_action){.kind = PIPELINE_FORWARD,
                                           .part = part,
                                           .batch = batch_of(w, part, w->forwards[part]++)});
}

static void backward(struct writer *w, int part, bool whole)
{
    add(w->track,
        (struct pipeline_action){.kind = whole ? PIPELINE_BACKWARD : PIPELINE_BACKWARD_INPUT,
                                 .part = part,
                                 .batch = batch_of(w, part, w->backwards[part]++)});
}

static void pair(struct writer *w, int part, int back)
{
    add(w->track, (struct pipeline_action){.kind = PIPELINE_PAIR,
                                           .part = part,
                                           .batch = batch_of(w, part, w->forwards[part]++),
                                           .back_part = back,
                                           .back_batch = batch_of(w, back, w->backwards[back]++)});
}

/* The oldest gradients of weights that were put off. */
static void weights(struct writer *w)
{
    const struct pipeline_action *action = w->track->action;
    while (action[w->taken].kind != PIPELINE_BACKWARD_INPUT) {
        w->taken++;
        assert(w->taken < w->track->count);
    }
    const struct pipeline_action from = action[w->taken++];
    add(w->track, (struct pipeline_action){
                      .kind = PIPELINE_BACKWARD_WEIGHTS, .part = from.part, .batch = from.batch});
}

/* 1f1b, and ZB-H1: gradients of weights wait while no more than `rank` of them do. */
static void write_plain(struct writer *w, int64_t rank)
{
    const int64_t batches = w->shape->batches, most = w->shape->ranks - 1 - rank,
                  ahead = most < batches ? most : batches;
    const bool split = w->shape->schedule == PIPELINE_ZERO_BUBBLE;
    int64_t off = 0;
    for (int64_t i = 0; i < ahead; i++) {
        forward(w, 0);
    }
    for (int64_t i = 0; i < batches; i++) {
        if (i + ahead < batches) {
            forward(w, 0);
        }
        backward(w, 0, !split);
        off += split;
        if (off > rank) {
            weights(w);
            off--;
        }
    }
    for (; off > 0; off--) {
        weights(w);
    }
}

static void write_pairs(struct writer *w)
{
    forward(w, 0);
    for (int64_t i = 1; i < w->shape->batches; i++) {
        pair(w, 0, 0);
    }
    backward(w, 0, true);
}

/* Groups of P micro-batches go through part after part; backward, through the last part first. */
static void write_interleaved(struct writer *w, int64_t rank)
{
    const int64_t p = w->shape->ranks, parts = w->shape->parts, all = w->shape->batches * parts,
                  most = 2 * (p - 1 - rank) + (parts - 1) * p, ahead = most < all ? most : all;
    for (int64_t i = 0; i < all + ahead; i++) {
        if (i < all) {
            forward(w, (int)(i / p % parts));
        }
        if (i >= ahead) {
            backward(w, (int)(parts - 1 - (i - ahead) / p % parts), true);
        }
    }
}

/* The eight sections of DualPipe. `h`: ranks between this one and where part `near` begins; `each`:
 * micro-batches of a part. */
static void write_dual(struct writer *w, int64_t h, int64_t each, int near)
{
    const int far = 1 - near;
    const int64_t half = pipeline_stages(w->shape) / 2, inner = half - h - 1;
    bool whole = true;
    for (int64_t i = 0; i < 2 * inner; i++) {
        forward(w, near);
    }
    for (int64_t i = 0; i <= h; i++) {
        forward(w, near);
        forward(w, far);
    }
    for (int64_t i = 0; i < inner; i++) {
        backward(w, far, false);
        weights(w);
        forward(w, far);
    }
    for (int64_t i = 0; i < each - 2 * half + h + 1; i++) {
        if (i == 0 && inner == 0) { /* the turn: whoever waits for the forward gets it sooner */
            forward(w, near);
            backward(w, far, true);
        } else {
            pair(w, near, far);
        }
        pair(w, far, near);
    }
    for (int64_t i = 0; i < inner; i++) {
        backward(w, far, true);
        pair(w, far, near);
    }
    for (int64_t i = 0; i <= h; i++) {
        whole = whole && !(i == (h + 1) / 2 && h % 2 == 1);
        backward(w, far, whole);
        whole = whole && !(i == (h + 1) / 2 && h % 2 == 0);
        backward(w, near, whole);
    }
    for (int64_t i = 0; i < inner; i++) {
        weights(w);
        backward(w, near, false);
    }
    for (int64_t i = 0; i <= h; i++) {
        weights(w);
    }
}

static void write_computing(struct writer *w, int64_t rank)
{
    const struct pipeline_shape *shape = w->shape;
    const int64_t mirrored = shape->ranks - 1 - rank;
    switch (shape->schedule) {
    case PIPELINE_INTERLEAVED:
        write_interleaved(w, rank);
        break;
    case PIPELINE_PAIRS:
        write_pairs(w);
        break;
    case PIPELINE_DUALPIPE:
        write_dual(w, rank < mirrored ? rank : mirrored, shape->batches / 2, rank >= mirrored);
        break;
    case PIPELINE_DUALPIPE_V:
        write_dual(w, rank, shape->batches, 0);
        break;
    default:
        write_plain(w, rank);
    }
}

/* --- messages --- */

/* What an action makes for another rank: up to a forward's and a backward's message. */
struct message {
    int64_t from, to; /* ranks */
    int32_t from_part, to_part, batch;
    bool gradient;
};

/* The message that (part, batch) of `rank` makes. False: the end of the way, or its own. */
static bool message_of(const struct pipeline_shape *shape, int64_t rank, int32_t part,
                       int32_t batch, bool gradient, struct message *out)
{
    const int64_t next = pipeline_stage(shape, rank, part) + (gradient ? -1 : 1);
    if (next < 0 || next >= pipeline_stages(shape)) {
        return false;
    }
    const struct pipeline_place to = pipeline_place(shape, next, batch);
    *out = (struct message){rank, to.rank, part, (int32_t)to.part, batch, gradient};
    return to.rank != rank;
}

static int messages_of(const struct pipeline_shape *shape, int64_t rank,
                       const struct pipeline_action *action, struct message out[2])
{
    int count = 0;
    if (action->kind == PIPELINE_FORWARD || action->kind == PIPELINE_PAIR) {
        count += message_of(shape, rank, action->part, action->batch, false, &out[count]);
    }
    if (action->kind == PIPELINE_BACKWARD || action->kind == PIPELINE_BACKWARD_INPUT) {
        count += message_of(shape, rank, action->part, action->batch, true, &out[count]);
    }
    if (action->kind == PIPELINE_PAIR) {
        count += message_of(shape, rank, action->back_part, action->back_batch, true, &out[count]);
    }
    return count;
}

/* Reads what one rank sends another, in order. */
struct channel {
    int64_t from;
    int64_t action; /* of `from`'s computing, and */
    int message;    /* of that action's messages: the next to look at */
};

static struct message next_message(const struct pipeline_shape *shape,
                                   const struct pipeline_track *computing, struct channel *channel,
                                   int64_t to)
{
    const struct pipeline_track *track = &computing[channel->from];
    for (;;) {
        struct message made[2];
        assert(channel->action < track->count);
        const int count = messages_of(shape, channel->from, &track->action[channel->action], made);
        while (channel->message < count) {
            const struct message one = made[channel->message++];
            if (one.to == to) {
                return one;
            }
        }
        channel->action++;
        channel->message = 0;
    }
}

/* Adds messages to the track of one rank. */
struct mailer {
    const struct pipeline_shape *shape;
    const struct pipeline_track *computing; /* [ranks] */
    struct pipeline_track *track;           /* of `rank` */
    int64_t rank;
    struct channel channel[2]; /* from the neighbours, which may be one */
    bool *here;                /* [2, parts, batches] received: activations, gradients */
};

static bool *here(const struct mailer *m, bool gradient, int32_t part, int32_t batch)
{
    return &m->here[(gradient * m->shape->parts + part) * m->shape->batches + batch];
}

/* Receives all that the neighbour has sent up to what (part, batch) needs. */
static void receive(struct mailer *m, int32_t part, int32_t batch, bool gradient)
{
    const int64_t last = pipeline_stage(m->shape, m->rank, part) + (gradient ? 1 : -1);
    if (last < 0 || last >= pipeline_stages(m->shape)) {
        return;
    }
    const struct pipeline_place from = pipeline_place(m->shape, last, batch);
    struct channel *channel = &m->channel[m->channel[0].from == from.rank ? 0 : 1];
    while (from.rank != m->rank && !*here(m, gradient, part, batch)) {
        const struct message one = next_message(m->shape, m->computing, channel, m->rank);
        *here(m, one.gradient, one.to_part, one.batch) = true;
        add(m->track, (struct pipeline_action){.kind = PIPELINE_RECEIVE,
                                               .part = one.to_part,
                                               .batch = one.batch,
                                               .peer = (int32_t)one.from,
                                               .gradient = one.gradient});
    }
}

static void mail_one(struct mailer *m, const struct pipeline_action *action)
{
    struct message made[2];
    const int count = messages_of(m->shape, m->rank, action, made);
    if (action->kind == PIPELINE_FORWARD || action->kind == PIPELINE_PAIR) {
        receive(m, action->part, action->batch, false);
    }
    if (action->kind == PIPELINE_BACKWARD || action->kind == PIPELINE_BACKWARD_INPUT) {
        receive(m, action->part, action->batch, true);
    }
    if (action->kind == PIPELINE_PAIR) {
        receive(m, action->back_part, action->back_batch, true);
    }
    add(m->track, *action);
    for (int i = 0; i < count; i++) {
        add(m->track, (struct pipeline_action){.kind = PIPELINE_SEND,
                                               .part = made[i].from_part,
                                               .batch = made[i].batch,
                                               .peer = (int32_t)made[i].to,
                                               .gradient = made[i].gradient});
    }
}

static enum status mail(struct pipeline *pipeline, const struct pipeline_track *computing,
                        int64_t rank)
{
    const struct pipeline_shape *shape = &pipeline->shape;
    const int64_t p = shape->ranks;
    struct mailer m = {.shape = shape,
                       .computing = computing,
                       .track = &pipeline->track[rank],
                       .rank = rank,
                       .channel = {{.from = (rank + p - 1) % p}, {.from = (rank + 1) % p}},
                       .here = calloc((size_t)(2 * shape->parts * shape->batches), sizeof *m.here)};
    if (m.here == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for a pipeline's messages");
    }
    for (int64_t i = 0; i < computing[rank].count; i++) {
        mail_one(&m, &computing[rank].action[i]);
    }
    free(m.here);
    return STATUS_OK;
}

/* --- the table --- */

/* Tracks of `each` actions for every (part, batch) of a rank. */
static struct pipeline_track *tracks_alloc(const struct pipeline_shape *shape, int64_t each)
{
    struct pipeline_track *track = calloc((size_t)shape->ranks, sizeof *track);
    bool good = track != NULL;
    for (int64_t r = 0; r < shape->ranks && good; r++) {
        track[r].room = each * shape->parts * shape->batches;
        track[r].action = malloc((size_t)track[r].room * sizeof *track[r].action);
        good = track[r].action != NULL;
    }
    return track;
}

static void tracks_free(struct pipeline_track *track, int64_t ranks)
{
    for (int64_t r = 0; r < ranks && track != NULL; r++) {
        free(track[r].action);
    }
    free(track);
}

static bool is_whole(const struct pipeline_track *track, int64_t ranks)
{
    return track != NULL && track[ranks - 1].action != NULL;
}

enum status pipeline_init(struct pipeline *pipeline, const struct pipeline_shape *shape)
{
    enum { COMPUTING = 3, MESSAGES = 4 }; /* forward, two halves of backward; in and out of each */
    *pipeline = (struct pipeline){.shape = *shape};
    TRY(pipeline_fits(shape));
    struct pipeline_track *computing = tracks_alloc(shape, COMPUTING);
    pipeline->track = tracks_alloc(shape, COMPUTING + MESSAGES);
    enum status status = STATUS_OK;
    if (!is_whole(computing, shape->ranks) || !is_whole(pipeline->track, shape->ranks)) {
        status = status_fail(STATUS_RESOURCE, "out of memory for a pipeline of %lld micro-batches",
                             (long long)shape->batches);
    }
    for (int64_t r = 0; r < shape->ranks && status == STATUS_OK; r++) {
        struct writer w = {.shape = shape, .track = &computing[r]};
        write_computing(&w, r);
    }
    for (int64_t r = 0; r < shape->ranks && status == STATUS_OK; r++) {
        status = mail(pipeline, computing, r);
    }
    tracks_free(computing, shape->ranks);
    return status;
}

void pipeline_free(struct pipeline *pipeline)
{
    tracks_free(pipeline->track, pipeline->shape.ranks);
    *pipeline = (struct pipeline){0};
}
