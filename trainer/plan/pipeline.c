#include "trainer/plan/pipeline.h"

#include <assert.h>
#include <stdlib.h>

/* What a rank does next: forward and backward of the next micro-batch of their directions. `WHOLE`
 * is backward with gradients of weights, `WEIGHT` the oldest ones put off, `PAIR` forward of
 * `direction` with the whole backward of the other. */
enum kind { FORWARD, BACKWARD, WHOLE, WEIGHT, PAIR };
struct task {
    enum kind kind;
    int direction; /* 0: micro-batches enter at rank 0, 1: at the last */
};

struct track {
    struct task *task; /* [room] owned */
    int64_t count, at;
    int64_t forwards[2], backwards[2]; /* done */
    int64_t put_off[2];                /* backwards whose weights' gradients are to come */
    double clock, busy;
};

struct play {
    const struct pipeline_times *times;
    struct pipeline_result *result;
    struct track track[PIPELINE_MOST];
    double *done[2][2]; /* [backward][direction]: [stages, micro-batches] owned: when; 0: not yet */
};

bool pipeline_fits(int schedule, int64_t stages, int64_t micro_batches)
{
    return schedule != CONFIG_PIPELINE_DUALPIPE ||
           (stages % 2 == 0 && micro_batches % 2 == 0 && micro_batches >= 2 * stages);
}

static void add(struct track *track, enum kind kind, int direction)
{
    track->task[track->count++] = (struct task){kind, direction};
}

/* Gradients of weights wait while more than `late` backwards' are to come. */
static void write_plain(struct track *track, int64_t stages, int64_t rank, int64_t batches,
                        bool split)
{
    const int64_t ahead = stages - 1 - rank < batches ? stages - 1 - rank : batches;
    int64_t off = 0;
    for (int64_t i = 0; i < ahead; i++) {
        add(track, FORWARD, 0);
    }
    for (int64_t i = 0; i < batches; i++) {
        if (i + ahead < batches) {
            add(track, FORWARD, 0);
        }
        add(track, split ? BACKWARD : WHOLE, 0);
        off += split;
        if (off > rank) {
            add(track, WEIGHT, 0);
            off--;
        }
    }
    for (; off > 0; off--) {
        add(track, WEIGHT, 0);
    }
}

/* The eight parts of DualPipe for the rank at distance `h` from its end; `near` is the direction
 * that enters there. */
static void write_dual(struct track *track, int64_t stages, int64_t h, int64_t each, int near)
{
    const int far = 1 - near;
    const int64_t inner = stages / 2 - h - 1;
    bool split = false;
    for (int64_t i = 0; i < 2 * inner; i++) {
        add(track, FORWARD, near);
    }
    for (int64_t i = 0; i <= h; i++) {
        add(track, FORWARD, near);
        add(track, FORWARD, far);
    }
    for (int64_t i = 0; i < inner; i++) {
        add(track, BACKWARD, far);
        add(track, WEIGHT, far);
        add(track, FORWARD, far);
    }
    for (int64_t i = 0; i < each - stages + h + 1; i++) {
        add(track, PAIR, near);
        add(track, PAIR, far);
    }
    for (int64_t i = 0; i < inner; i++) {
        add(track, WHOLE, far);
        add(track, PAIR, far);
    }
    for (int64_t i = 0; i <= h; i++) {
        split = split || (i == (h + 1) / 2 && h % 2 == 1);
        add(track, split ? BACKWARD : WHOLE, far);
        split = split || (i == (h + 1) / 2 && h % 2 == 0);
        add(track, split ? BACKWARD : WHOLE, near);
    }
    for (int64_t i = 0; i < inner; i++) {
        add(track, WEIGHT, near);
        add(track, BACKWARD, near);
    }
    for (int64_t i = 0; i <= h; i++) {
        add(track, WEIGHT, near);
    }
}

static double *done(struct play *play, bool backward, int direction, int64_t stage, int64_t batch)
{
    return &play->done[backward][direction][stage * play->times->micro_batches + batch];
}

static int64_t stage_of(const struct play *play, int64_t rank, int direction)
{
    return direction == 0 ? rank : play->times->stages - 1 - rank;
}

/* When what the next forward or backward of a direction needs is here; < 0: nobody knows yet. */
static double ready(struct play *play, int64_t rank, bool backward, int direction)
{
    const struct track *track = &play->track[rank];
    const int64_t stage = stage_of(play, rank, direction), last = play->times->stages - 1,
                  batch = backward ? track->backwards[direction] : track->forwards[direction];
    const double own = backward ? *done(play, false, direction, stage, batch) : 1e-300;
    if (own == 0) {
        return -1;
    }
    if (stage == (backward ? last : 0)) {
        return own;
    }
    const double from = *done(play, backward, direction, stage + (backward ? 1 : -1), batch);
    return from == 0 ? -1 : from + play->times->hop;
}

static void note_held(struct play *play, int64_t rank, int direction)
{
    const struct track *track = &play->track[rank];
    const int64_t held =
        track->forwards[direction] - track->backwards[direction] + track->put_off[direction];
    int64_t *most = direction == 0 ? &play->result->held[rank] : &play->result->held_2[rank];
    *most = held > *most ? held : *most;
}

static void finish(struct play *play, int64_t rank, bool backward, int direction, double at)
{
    struct track *track = &play->track[rank];
    int64_t *count = backward ? &track->backwards[direction] : &track->forwards[direction];
    *done(play, backward, direction, stage_of(play, rank, direction), *count) = at;
    (*count)++;
    note_held(play, rank, direction);
}

/* s that a task takes. */
static double length(const struct play *play, int64_t rank, const struct task *task)
{
    const struct pipeline_times *t = play->times;
    const int64_t stage = stage_of(play, rank, task->direction);
    switch (task->kind) {
    case FORWARD:
        return t->forward[stage];
    case BACKWARD:
        return t->backward[stage];
    case WHOLE:
        return t->backward[stage] + t->weight[stage];
    case WEIGHT:
        return t->weight[stage];
    default:
        return t->pair[stage];
    }
}

/* Runs the rank's next task if what it needs is known. */
static bool advance(struct play *play, int64_t rank)
{
    struct track *track = &play->track[rank];
    if (track->at == track->count) {
        return false;
    }
    struct task task = track->task[track->at];
    const bool pair = task.kind == PAIR, weight = task.kind == WEIGHT;
    const int back = pair ? 1 - task.direction : task.direction;
    if (weight && track->put_off[task.direction] == 0) {
        task.direction = 1 - task.direction; /* whichever was put off */
        assert(track->put_off[task.direction] > 0);
    }
    double start = track->clock;
    if (task.kind == FORWARD || pair) {
        const double at = ready(play, rank, false, task.direction);
        start = at < 0 ? -1 : at > start ? at : start;
    }
    if (start >= 0 && !weight && task.kind != FORWARD) {
        const double at = ready(play, rank, true, back);
        start = at < 0 ? -1 : at > start ? at : start;
    }
    if (start < 0) {
        return false;
    }
    const double takes = length(play, rank, &task), end = start + takes;
    track->clock = end;
    track->busy += takes;
    track->at++;
    if (task.kind == FORWARD || pair) {
        finish(play, rank, false, task.direction, end);
    }
    if (task.kind == BACKWARD) {
        track->put_off[back]++;
    }
    if (weight) {
        track->put_off[task.direction]--;
    } else if (task.kind != FORWARD) {
        finish(play, rank, true, back, end);
    }
    return true;
}

static void play_all(struct play *play)
{
    for (bool moved = true; moved;) {
        moved = false;
        for (int64_t rank = 0; rank < play->times->stages; rank++) {
            while (advance(play, rank)) {
                moved = true;
            }
        }
    }
}

static void read_result(const struct play *play)
{
    double busiest = 0;
    for (int64_t rank = 0; rank < play->times->stages; rank++) {
        const struct track *track = &play->track[rank];
        assert(track->at == track->count);
        play->result->seconds =
            track->clock > play->result->seconds ? track->clock : play->result->seconds;
        busiest = track->busy > busiest ? track->busy : busiest;
    }
    play->result->idle = play->result->seconds - busiest;
}

enum status pipeline_play(struct pipeline_result *result, const struct pipeline_times *times,
                          int schedule)
{
    const int64_t stages = times->stages, batches = times->micro_batches;
    const bool dual = schedule == CONFIG_PIPELINE_DUALPIPE;
    struct play *play = calloc(1, sizeof *play);
    bool good = play != NULL;
    *result = (struct pipeline_result){0};
    for (int i = 0; i < 4 && good; i++) {
        play->done[i / 2][i % 2] = calloc((size_t)(stages * batches), sizeof(double));
        good = play->done[i / 2][i % 2] != NULL;
    }
    for (int64_t rank = 0; rank < stages && good; rank++) {
        struct track *track = &play->track[rank];
        const int64_t mirrored = stages - 1 - rank;
        track->task = malloc((size_t)(3 * batches + 4 * stages) * sizeof *track->task);
        good = track->task != NULL;
        if (good && dual) {
            const bool lower = rank < mirrored;
            write_dual(track, stages, lower ? rank : mirrored, batches / 2, lower ? 0 : 1);
        } else if (good) {
            write_plain(track, stages, rank, batches, schedule == CONFIG_PIPELINE_ZERO_BUBBLE);
        }
    }
    if (good) {
        play->times = times;
        play->result = result;
        play_all(play);
        read_result(play);
    }
    for (int64_t rank = 0; play != NULL && rank < stages; rank++) {
        free(play->track[rank].task);
    }
    for (int i = 0; play != NULL && i < 4; i++) {
        free(play->done[i / 2][i % 2]);
    }
    free(play);
    return good ? STATUS_OK
                : status_fail(STATUS_RESOURCE, "out of memory for a pipeline of %lld micro-batches",
                              (long long)batches);
}
