#include <stdlib.h>

#include "parallel/pipeline.h"

void pipeline_held(const struct pipeline *pipeline, int64_t rank, int64_t *held)
{
    const struct pipeline_track *track = &pipeline->track[rank];
    for (int64_t part = 0; part < pipeline->shape.parts; part++) {
        int64_t now = 0;
        held[part] = 0;
        for (int64_t i = 0; i < track->count; i++) {
            const struct pipeline_action *a = &track->action[i];
            const bool pair = a->kind == PIPELINE_PAIR;
            now += a->part == part && (pair || a->kind == PIPELINE_FORWARD);
            held[part] = now > held[part] ? now : held[part];
            now -= pair ? a->back_part == part
                        : a->part == part && (a->kind == PIPELINE_BACKWARD ||
                                              a->kind == PIPELINE_BACKWARD_WEIGHTS);
        }
    }
}

void pipeline_put_off(const struct pipeline *pipeline, int64_t rank, int64_t *off)
{
    const struct pipeline_track *track = &pipeline->track[rank];
    for (int64_t part = 0; part < pipeline->shape.parts; part++) {
        int64_t now = 0;
        off[part] = 0;
        for (int64_t i = 0; i < track->count; i++) {
            const struct pipeline_action *a = &track->action[i];
            now += a->part == part && a->kind == PIPELINE_BACKWARD_INPUT;
            now -= a->part == part && a->kind == PIPELINE_BACKWARD_WEIGHTS;
            off[part] = now > off[part] ? now : off[part];
        }
    }
}

/* Letters there after a pass of (part, batch): it uses one, but where the way begins, and leaves
 * one where the next stage is this rank's too. */
static int64_t pass(const struct pipeline_shape *shape, int64_t rank, int64_t part, int64_t batch,
                    bool gradient, int64_t letters)
{
    const int64_t stage = pipeline_stage(shape, rank, part), last = pipeline_stages(shape) - 1,
                  next = stage + (gradient ? -1 : 1);
    letters -= stage != (gradient ? last : 0);
    return letters + (next >= 0 && next <= last && pipeline_place(shape, next, batch).rank == rank);
}

int64_t pipeline_letters(const struct pipeline *pipeline, int64_t rank)
{
    const struct pipeline_shape *shape = &pipeline->shape;
    const struct pipeline_track *track = &pipeline->track[rank];
    int64_t now = 0, most = 0;
    for (int64_t i = 0; i < track->count; i++) {
        const struct pipeline_action *a = &track->action[i];
        const bool pair = a->kind == PIPELINE_PAIR;
        if (pair || a->kind == PIPELINE_FORWARD) {
            now = pass(shape, rank, a->part, a->batch, false, now);
            most = now > most ? now : most;
        }
        if (pair) {
            now = pass(shape, rank, a->back_part, a->back_batch, true, now);
        } else if (a->kind == PIPELINE_BACKWARD || a->kind == PIPELINE_BACKWARD_INPUT) {
            now = pass(shape, rank, a->part, a->batch, true, now);
        }
        now += a->kind == PIPELINE_RECEIVE;
        most = now > most ? now : most;
    }
    return most;
}

/* A rank, while all play against each other. */
struct sender {
    int64_t at;   /* next action */
    int64_t sent; /* messages begun; of each: */
    struct {
        int64_t to, number; /* among those to that rank */
    } * message;            /* owned */
};

struct play {
    const struct pipeline *pipeline;
    int64_t most; /* messages a rank may have under way */
    struct sender *sender;
    int64_t *sent, *received; /* [ranks, ranks] owned: from, to */
};

static enum status play_init(struct play *play, const struct pipeline *pipeline)
{
    const size_t ranks = (size_t)pipeline->shape.ranks;
    *play = (struct play){.pipeline = pipeline,
                          .sender = calloc(ranks, sizeof *play->sender),
                          .sent = calloc(ranks * ranks, sizeof *play->sent),
                          .received = calloc(ranks * ranks, sizeof *play->received)};
    bool good = play->sender != NULL && play->sent != NULL && play->received != NULL;
    for (size_t r = 0; r < ranks && good; r++) {
        struct sender *sender = &play->sender[r];
        sender->message = calloc((size_t)pipeline->track[r].count + 1, sizeof *sender->message);
        good = sender->message != NULL;
    }
    return good ? STATUS_OK
                : status_fail(STATUS_RESOURCE, "out of memory to play a pipeline's messages");
}

static void play_free(struct play *play)
{
    for (int64_t r = 0; play->sender != NULL && r < play->pipeline->shape.ranks; r++) {
        free(play->sender[r].message);
    }
    free(play->sender);
    free(play->sent);
    free(play->received);
}

/* The next action of a rank; false: it waits. */
static bool act(struct play *play, int64_t rank)
{
    const int64_t ranks = play->pipeline->shape.ranks;
    struct sender *sender = &play->sender[rank];
    const struct pipeline_action *a = &play->pipeline->track[rank].action[sender->at];
    if (a->kind == PIPELINE_SEND) {
        const int64_t oldest = sender->sent - play->most, pair = rank * ranks + a->peer;
        if (oldest >= 0 && play->received[rank * ranks + sender->message[oldest].to] <=
                               sender->message[oldest].number) {
            return false;
        }
        sender->message[sender->sent].to = a->peer;
        sender->message[sender->sent++].number = play->sent[pair]++;
    } else if (a->kind == PIPELINE_RECEIVE) {
        const int64_t pair = a->peer * ranks + rank;
        if (play->received[pair] == play->sent[pair]) {
            return false;
        }
        play->received[pair]++;
    }
    sender->at++;
    return true;
}

/* Whether all come to the end with so many messages under way. */
static bool ends(struct play *play, int64_t most)
{
    const int64_t ranks = play->pipeline->shape.ranks;
    bool all = true;
    play->most = most;
    for (int64_t r = 0; r < ranks; r++) {
        play->sender[r].at = play->sender[r].sent = 0;
    }
    for (int64_t i = 0; i < ranks * ranks; i++) {
        play->sent[i] = play->received[i] = 0;
    }
    for (bool moved = true; moved;) {
        moved = false;
        for (int64_t r = 0; r < ranks; r++) {
            while (play->sender[r].at < play->pipeline->track[r].count && act(play, r)) {
                moved = true;
            }
        }
    }
    for (int64_t r = 0; r < ranks; r++) {
        all = all && play->sender[r].at == play->pipeline->track[r].count;
    }
    return all;
}

enum status pipeline_sending(const struct pipeline *pipeline, int64_t *sending)
{
    struct play play;
    const enum status status = play_init(&play, pipeline);
    *sending = 1;
    while (status == STATUS_OK && !ends(&play, *sending)) {
        (*sending)++;
    }
    play_free(&play);
    return status;
}
