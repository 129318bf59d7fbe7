/* Schedules of pipelines: the tables are whole and come to an end, a planted fault is found, and
 * played against even stages they wait and keep as published.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "parallel/timeline.h"

enum { RANKS_MOST = 16, STAGES_MOST = 64 };

static const int rank_counts[] = {1, 2, 3, 4, 5, 6, 8, 12, 16};

/* Every shape of a schedule up to 16 ranks: few micro-batches, odd numbers, many. */
static void each_shape(enum pipeline_schedule schedule,
                       void (*visit)(const struct pipeline_shape *))
{
    const int64_t two = schedule == PIPELINE_DUALPIPE || schedule == PIPELINE_DUALPIPE_V;
    const int64_t most = schedule == PIPELINE_INTERLEAVED ? 4 : two ? 2 : 1;
    int seen = 0;
    for (size_t i = 0; i < sizeof rank_counts / sizeof rank_counts[0]; i++) {
        for (int64_t batches = 1; batches <= 6 * RANKS_MOST; batches += batches < 40 ? 1 : 7) {
            for (int64_t parts = 1; parts <= most; parts++) {
                const struct pipeline_shape shape = {schedule, rank_counts[i], parts, batches};
                if (pipeline_fits(&shape) == STATUS_OK) {
                    visit(&shape);
                    seen++;
                }
            }
        }
    }
    assert_true(seen > 20);
}

/* What makes gradients of weights of the action: the part, of micro-batch *batch; -1: nothing. */
static int32_t made_by(const struct pipeline_action *a, int32_t *batch)
{
    const bool pair = a->kind == PIPELINE_PAIR;
    *batch = pair ? a->back_batch : a->batch;
    return pair ? a->back_part
           : a->kind == PIPELINE_BACKWARD ||
                   a->kind == PIPELINE_BACKWARD_INPUT || /* norms, routers, head */
                   a->kind == PIPELINE_BACKWARD_WEIGHTS
               ? a->part
               : -1;
}

/* Each part's gradients are whole behind the last micro-batch's, those that its gradients of inputs
 * come with behind these (trainer/model/reduction.h). */
static void check_last(const struct pipeline *pipeline)
{
    for (int64_t r = 0; r < pipeline->shape.ranks; r++) {
        const struct pipeline_track *track = &pipeline->track[r];
        for (int32_t part = 0; part < pipeline->shape.parts; part++) {
            int32_t last = -1, last_input = -1;
            for (int64_t i = 0; i < track->count; i++) {
                const struct pipeline_action *a = &track->action[i];
                int32_t batch = -1;
                if (made_by(a, &batch) == part) {
                    last = a->kind == PIPELINE_BACKWARD_INPUT ? -1 : batch;
                    last_input = a->kind == PIPELINE_BACKWARD_WEIGHTS ? last_input : batch;
                }
            }
            assert_int_equal(last, pipeline->shape.batches - 1);
            assert_int_equal(last_input, pipeline->shape.batches - 1);
        }
    }
}

static void check_shape(const struct pipeline_shape *shape)
{
    struct pipeline pipeline;
    struct pipeline_room room[RANKS_MOST];
    assert_int_equal(pipeline_init(&pipeline, shape), STATUS_OK);
    if (pipeline_check(&pipeline, room) != STATUS_OK) {
        fail_msg("%lld ranks, %lld parts, %lld micro-batches: %s", (long long)shape->ranks,
                 (long long)shape->parts, (long long)shape->batches, status_message());
    }
    if (shape->schedule != PIPELINE_DUALPIPE) { /* which is planned only, both directions at once */
        check_last(&pipeline);
    }
    pipeline_free(&pipeline);
}

static void test_tables_are_whole(void **state)
{
    (void)state;
    for (int s = 0; s < PIPELINE_SCHEDULES; s++) {
        each_shape((enum pipeline_schedule)s, check_shape);
    }
}

/* --- planted faults --- */

static struct pipeline sample(void)
{
    const struct pipeline_shape shape = {PIPELINE_DUALPIPE_V, 3, 2, 8};
    struct pipeline pipeline;
    assert_int_equal(pipeline_init(&pipeline, &shape), STATUS_OK);
    return pipeline;
}

static void expect_found(const struct pipeline *pipeline, const char *fault, int64_t rank,
                         int64_t at)
{
    if (pipeline_check(pipeline, NULL) != STATUS_INTERNAL) {
        fail_msg("%s of rank %lld's action %lld is not found", fault, (long long)rank,
                 (long long)at);
    }
}

/* Without any one action, with any one twice, or with another micro-batch in it, a table is wrong.
 */
static void test_faults_are_found(void **state)
{
    (void)state;
    struct pipeline pipeline = sample();
    for (int64_t r = 0; r < pipeline.shape.ranks; r++) {
        struct pipeline_track *track = &pipeline.track[r];
        const int64_t count = track->count;
        assert_true(count < track->room);
        for (int64_t i = 0; i < count; i++) {
            const struct pipeline_action one = track->action[i];
            struct pipeline_action *at = &track->action[i];
            const size_t rest = (size_t)(count - i - 1) * sizeof *at;
            memmove(at, at + 1, rest);
            track->count = count - 1;
            expect_found(&pipeline, "loss", r, i);
            memmove(at + 1, at, rest);
            *at = one;
            memmove(at + 1, at, rest + sizeof *at);
            track->count = count + 1;
            expect_found(&pipeline, "repetition", r, i);
            memmove(at, at + 1, rest + sizeof *at);
            track->count = count;
            at->batch = (one.batch + 1) % (int32_t)pipeline.shape.batches;
            expect_found(&pipeline, "another micro-batch", r, i);
            *at = one;
            at->part = 1 - one.part;
            expect_found(&pipeline, "another part", r, i);
            *at = one;
            at->peer = one.peer + 1;
            if (one.kind == PIPELINE_SEND || one.kind == PIPELINE_RECEIVE) {
                expect_found(&pipeline, "another peer", r, i);
            }
            *at = one;
        }
    }
    assert_int_equal(pipeline_check(&pipeline, NULL), STATUS_OK);
    pipeline_free(&pipeline);
}

static int64_t find(const struct pipeline_track *track, enum pipeline_kind kind)
{
    for (int64_t i = 0; i < track->count; i++) {
        if (track->action[i].kind == kind) {
            return i;
        }
    }
    return -1;
}

/* Two ranks that each wait for the other first. */
static void test_deadlock_is_found(void **state)
{
    (void)state;
    const struct pipeline_shape shape = {PIPELINE_1F1B, 2, 1, 4};
    struct pipeline pipeline;
    assert_int_equal(pipeline_init(&pipeline, &shape), STATUS_OK);
    struct pipeline_track *track = &pipeline.track[0];
    const int64_t last = find(track, PIPELINE_RECEIVE);
    const struct pipeline_action first = track->action[last];
    memmove(&track->action[1], &track->action[0], (size_t)last * sizeof first);
    track->action[0] = first;
    assert_int_equal(pipeline_check(&pipeline, NULL), STATUS_INTERNAL);
    assert_non_null(strstr(status_message(), "waits forever"));
    pipeline_free(&pipeline);
}

static void test_shapes_that_are_not(void **state)
{
    (void)state;
    const struct pipeline_shape none[] = {
        {PIPELINE_1F1B, 4, 2, 8},        {PIPELINE_1F1B, 0, 1, 8},
        {PIPELINE_1F1B, 2, 1, 0},        {PIPELINE_INTERLEAVED, 4, 1, 8},
        {PIPELINE_INTERLEAVED, 4, 2, 6}, {PIPELINE_DUALPIPE, 3, 2, 100},
        {PIPELINE_DUALPIPE, 8, 2, 14},   {PIPELINE_DUALPIPE, 8, 2, 17},
        {PIPELINE_DUALPIPE_V, 8, 2, 15}, {PIPELINE_DUALPIPE_V, 8, 1, 16},
    };
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) {
        struct pipeline pipeline;
        assert_int_equal(pipeline_init(&pipeline, &none[i]), STATUS_USAGE);
        pipeline_free(&pipeline);
    }
}

/* --- published figures --- */

/* Of one stage: F, the two halves of B. */
struct costs {
    double forward, input, weights;
};
static const double F = 2, B = 4, W = 1;
static const struct costs usual = {2, 3, 1};

/* pair 0: as long as its parts. */
static struct timeline play(const struct pipeline_shape *shape, const struct costs *each,
                            double pair)
{
    static double forward[STAGES_MOST], input[STAGES_MOST], weights[STAGES_MOST], both[STAGES_MOST];
    const double thin = shape->schedule == PIPELINE_INTERLEAVED ? (double)shape->parts : 1;
    const struct timeline_costs costs = {
        .forward = forward, .input = input, .weights = weights, .pair = pair > 0 ? both : NULL};
    struct pipeline pipeline;
    struct timeline timeline;
    for (int s = 0; s < STAGES_MOST; s++) {
        forward[s] = each->forward / thin;
        input[s] = each->input / thin;
        weights[s] = each->weights / thin;
        both[s] = pair;
    }
    assert_int_equal(pipeline_init(&pipeline, shape), STATUS_OK);
    assert_int_equal(timeline_play(&timeline, &pipeline, &costs), STATUS_OK);
    pipeline_free(&pipeline);
    return timeline;
}

static void expect(const struct pipeline_shape *shape, const char *what, double value,
                   double expected)
{
    if (fabs(value - expected) > 1e-9 * expected + 1e-9) {
        fail_msg("%s, %lld ranks, %lld parts, %lld micro-batches: %s %.12g, expected %.12g",
                 pipeline_names[shape->schedule], (long long)shape->ranks, (long long)shape->parts,
                 (long long)shape->batches, what, value, expected);
    }
}

static double most_kept(const struct timeline *timeline)
{
    double most = 0;
    for (int64_t r = 0; r < timeline->ranks; r++) {
        most = timeline->kept[r] > most ? timeline->kept[r] : most;
    }
    return most;
}

static double smaller(double a, double b)
{
    return a < b ? a : b;
}

/* (P-1)(F+B), P micro-batches (PipeDream-flush). */
static void expect_1f1b(const struct pipeline_shape *shape)
{
    struct timeline t = play(shape, &usual, 0);
    const double p = (double)shape->ranks, m = (double)shape->batches;
    expect(shape, "gap", t.idle, (p - 1) * (F + B));
    for (int64_t r = 0; r < shape->ranks; r++) {
        expect(shape, "busy", t.busy[r], m * (F + B));
        expect(shape, "kept", t.kept[r], smaller(p - (double)r, m));
    }
    timeline_free(&t);
}

/* (P-1)(F+B)/v; the first rank keeps P v + P - 1 thin stages (Narayanan et al. 2021). */
static void expect_interleaved(const struct pipeline_shape *shape)
{
    struct timeline t = play(shape, &usual, 0);
    const double p = (double)shape->ranks, v = (double)shape->parts, m = (double)shape->batches;
    expect(shape, "gap", t.idle, (p - 1) * (F + B) / v);
    expect(shape, "kept", most_kept(&t), smaller(p * v + p - 1, m * v));
    timeline_free(&t);
}

/* (P-1)(F+B-2W), P micro-batches (Qi et al. 2023); with fewer than the pipe holds there is less to
 * put off. */
static void expect_zero_bubble(const struct pipeline_shape *shape)
{
    struct timeline t = play(shape, &usual, 0);
    const double p = (double)shape->ranks, m = (double)shape->batches;
    if (m >= 2 * p - 1) {
        expect(shape, "gap", t.idle, (p - 1) * (F + B - 2 * W));
    }
    expect(shape, "kept", most_kept(&t), smaller(p, m));
    timeline_free(&t);
}

/* (S/2-1)(F&B+B-3W), S stages; at most S + 1 kept (DualPipe's README). The formula is of equal
 * thirds, F = the two halves of B: then every rank waits so long where a pair takes what its parts
 * take, and the ranks at the turn where it takes less. Without equal thirds none waits longer. */
static void expect_dual(const struct pipeline_shape *shape)
{
    static const struct costs thirds = {2, 2, 2}, uneven = {2, 3, 1};
    const double s = (double)pipeline_stages(shape);
    for (double pair = 4; pair <= 6; pair++) {
        struct timeline t = play(shape, &thirds, pair);
        const double gap = (s / 2 - 1) * (pair + 4 - 3 * 2);
        const int64_t turn =
            shape->schedule == PIPELINE_DUALPIPE ? shape->ranks / 2 : shape->ranks - 1;
        expect(shape, "gap at the turn", t.seconds - t.busy[turn], gap);
        for (int64_t r = 0; r < shape->ranks && pair == 6; r++) {
            expect(shape, "gap", t.seconds - t.busy[r], gap);
        }
        expect(shape, "kept", most_kept(&t), s + 1);
        timeline_free(&t);
        t = play(shape, &uneven, pair);
        assert_true(t.idle <= (s / 2 - 1) * (pair + 4 - 3 * 1) + 1e-9);
        timeline_free(&t);
    }
}

static void test_published_gaps(void **state)
{
    (void)state;
    each_shape(PIPELINE_1F1B, expect_1f1b);
    each_shape(PIPELINE_INTERLEAVED, expect_interleaved);
    each_shape(PIPELINE_ZERO_BUBBLE, expect_zero_bubble);
    each_shape(PIPELINE_DUALPIPE, expect_dual);
    each_shape(PIPELINE_DUALPIPE_V, expect_dual);
}

/* Messages that take their time, and a stage that does: the pace is the slowest stage's. */
static void test_slow_stage_sets_the_pace(void **state)
{
    (void)state;
    const double forward[] = {2, 2, 4, 2}, input[] = {3, 3, 3, 3}, weights[] = {1, 1, 1, 1},
                 kept[] = {1, 1, 10, 1};
    struct timeline_costs costs = {
        .forward = forward, .input = input, .weights = weights, .kept = kept};
    const struct pipeline_shape shape = {PIPELINE_1F1B, 4, 1, 100};
    struct pipeline pipeline;
    struct timeline at_once, late;
    assert_int_equal(pipeline_init(&pipeline, &shape), STATUS_OK);
    assert_int_equal(timeline_play(&at_once, &pipeline, &costs), STATUS_OK);
    costs.hop = 0.5;
    assert_int_equal(timeline_play(&late, &pipeline, &costs), STATUS_OK);
    assert_true(at_once.seconds >= 100 * 8 && at_once.seconds < 100 * 8 + 5 * 8);
    assert_true(late.seconds >= at_once.seconds + 6 * 0.5); /* to the last rank and back */
    assert_true(at_once.kept[2] == 20 && at_once.kept[0] == 4);
    for (int64_t r = 0; r < shape.ranks; r++) { /* spans follow each other */
        double last = 0;
        for (int64_t i = 0; i < pipeline.track[r].count; i++) {
            assert_true(late.span[r][i].start == last && late.span[r][i].end >= last);
            last = late.span[r][i].end;
        }
    }
    timeline_free(&at_once);
    timeline_free(&late);
    pipeline_free(&pipeline);
}

/* Letters: what the checker says was received and not used, and one or two at the turn of
 * dualpipe_v, on the rank that hands them to itself. What waits for its gradients of weights is
 * held, too: of zero_bubble r + 1 on rank r, where there are so many. */
static void expect_waiting(const struct pipeline *pipeline, const struct pipeline_room *room)
{
    const struct pipeline_shape *shape = &pipeline->shape;
    for (int64_t r = 0; r < shape->ranks; r++) {
        const bool alone = shape->ranks == 1, /* all is handed over */
            turn = shape->schedule == PIPELINE_DUALPIPE_V && r == shape->ranks - 1;
        const int64_t letters = pipeline_letters(pipeline, r), own = letters - room[r].waiting;
        int64_t off[8], held[8];
        if (!(alone || (turn ? own >= 0 && own <= 2 && letters > 0 : own == 0))) {
            fail_msg("%s, %lld ranks, %lld parts, %lld micro-batches: rank %lld has %lld letters, "
                     "%lld received",
                     pipeline_names[shape->schedule], (long long)shape->ranks,
                     (long long)shape->parts, (long long)shape->batches, (long long)r,
                     (long long)letters, (long long)room[r].waiting);
        }
        pipeline_put_off(pipeline, r, off);
        pipeline_held(pipeline, r, held);
        for (int64_t part = 0; part < shape->parts; part++) {
            const bool dual = shape->schedule == PIPELINE_DUALPIPE_V;
            assert_true(off[part] >= 0 && off[part] <= held[part]);
            assert_true(dual ||
                        off[part] == (shape->schedule == PIPELINE_ZERO_BUBBLE
                                          ? (r + 1 < shape->batches ? r + 1 : shape->batches)
                                          : 0));
        }
    }
}

/* Held by parts adds up to what the checker says of one part, and no rank of a training schedule
 * needs more than two messages under way. */
static void expect_room(const struct pipeline_shape *shape)
{
    struct pipeline pipeline;
    struct pipeline_room room[64];
    int64_t held[8], sending = 0;
    assert_true(shape->parts <= 8 && shape->ranks <= 64);
    assert_int_equal(pipeline_init(&pipeline, shape), STATUS_OK);
    assert_int_equal(pipeline_check(&pipeline, room), STATUS_OK);
    for (int64_t r = 0; r < shape->ranks; r++) {
        int64_t sum = 0, most = 0;
        pipeline_held(&pipeline, r, held);
        for (int64_t part = 0; part < shape->parts; part++) {
            sum += held[part];
            most = held[part] > most ? held[part] : most;
        }
        assert_true(sum >= room[r].held && most <= room[r].held);
        assert_true(shape->parts > 1 || sum == room[r].held);
    }
    assert_int_equal(pipeline_sending(&pipeline, &sending), STATUS_OK);
    assert_true(sending >= 1 && sending <= 2);
    expect_waiting(&pipeline, room);
    pipeline_free(&pipeline);
}

static void test_room(void **state)
{
    (void)state;
    each_shape(PIPELINE_1F1B, expect_room);
    each_shape(PIPELINE_INTERLEAVED, expect_room);
    each_shape(PIPELINE_ZERO_BUBBLE, expect_room);
    each_shape(PIPELINE_DUALPIPE_V, expect_room);
}

/* Two ranks that send each other two messages and then receive: one under way is not enough. */
static void test_messages_under_way(void **state)
{
    (void)state;
    struct pipeline_action action[2][4];
    struct pipeline_track track[2];
    for (int r = 0; r < 2; r++) {
        for (int i = 0; i < 4; i++) {
            action[r][i] = (struct pipeline_action){
                .kind = i < 2 ? PIPELINE_SEND : PIPELINE_RECEIVE, .peer = 1 - r};
        }
        track[r] = (struct pipeline_track){.action = action[r], .count = 4};
    }
    const struct pipeline pipeline = {.shape = {PIPELINE_1F1B, 2, 1, 1}, .track = track};
    int64_t sending = 0;
    assert_int_equal(pipeline_sending(&pipeline, &sending), STATUS_OK);
    assert_int_equal(sending, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tables_are_whole),
        cmocka_unit_test(test_faults_are_found),
        cmocka_unit_test(test_deadlock_is_found),
        cmocka_unit_test(test_shapes_that_are_not),
        cmocka_unit_test(test_published_gaps),
        cmocka_unit_test(test_slow_stage_sets_the_pace),
        cmocka_unit_test(test_room),
        cmocka_unit_test(test_messages_under_way),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
