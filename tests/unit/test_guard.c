/* When an update is left out, what is a spike, what is kept of it in a checkpoint. */
#include "unit/scratch.h"

#include <math.h>

#include "trainer/guard.h"
#include "trainer/profile.h"
#include "trainer/straggler.h"

static struct config config;
static struct guard_state kept;

static struct guard make(int nonfinite, int spike, int64_t window, int64_t tries)
{
    config_free(&config);
    config_init(&config);
    config.guard.on_nonfinite = nonfinite;
    config.guard.on_spike = spike;
    config.guard.spike_window = window;
    config.guard.tries = tries;
    kept = (struct guard_state){0};
    return (struct guard){.config = &config, .state = &kept};
}

/* A loss and norm without noise, but not constant. */
static enum guard_verdict usual(struct guard *guard, int64_t step)
{
    return guard_judge(guard, step, 3 + 0.01 * (double)(step % 3), 1 + 0.05 * (double)(step % 5),
                       NULL);
}

static void test_limit(void **state)
{
    (void)state;
    const double even[] = {1, 2, 3, 4}, same[] = {5, 5, 5};
    /* median 2.5, distances 1.5 0.5 0.5 1.5: median 1 */
    assert_true(fabs(guard_limit(even, 4, 6, 0) - (2.5 + 6 * 1.4826)) < 1e-12);
    assert_true(guard_limit(same, 3, 6, 0.1) == 5 + 6 * 0.5);
    assert_true(even[0] == 1 && even[3] == 4); /* not sorted in place */
}

static void test_spikes(void **state)
{
    (void)state;
    struct guard guard = make(CONFIG_GUARD_STOP, CONFIG_GUARD_SKIP, 8, 3);
    for (int64_t step = 1; step <= 3; step++) { /* fewer than half a window: nothing is judged */
        assert_int_equal(guard_judge(&guard, step, step == 2 ? 1e9 : 3, 1, NULL), GUARD_UPDATE);
    }
    guard = make(CONFIG_GUARD_STOP, CONFIG_GUARD_SKIP, 8, 3);
    for (int64_t step = 1; step <= 20; step++) {
        assert_int_equal(usual(&guard, step), GUARD_UPDATE);
    }
    assert_int_equal(kept.count, 8);
    const struct guard_state before = kept;
    assert_int_equal(guard_judge(&guard, 21, 5, 1, NULL), GUARD_SKIP);
    assert_non_null(strstr(guard.why, "loss 5 is a spike"));
    assert_int_equal(guard_judge(&guard, 22, 3, 5, NULL), GUARD_SKIP);
    assert_non_null(strstr(guard.why, "gradient norm 5 is a spike"));
    assert_memory_equal(kept.loss, before.loss, sizeof kept.loss); /* spikes are not kept */
    assert_int_equal(kept.skips, 2);
    assert_int_equal(kept.skipped, 2);
    assert_int_equal(usual(&guard, 23), GUARD_UPDATE);
    assert_int_equal(kept.skips, 0);
    for (int64_t step = 24; step < 27; step++) {
        assert_int_equal(guard_judge(&guard, step, 9, 1, NULL), GUARD_SKIP);
    }
    assert_int_equal(guard_judge(&guard, 27, 9, 1, NULL), GUARD_STOP);
    assert_non_null(strstr(status_message(), "3 updates left out in a row"));
    assert_int_equal(guard_judge(&guard, 27, 1, 1, NULL), GUARD_UPDATE); /* lower is no spike */
}

static void test_not_finite(void **state)
{
    (void)state;
    assert_int_equal(guard_judge(NULL, 1, 9, 9, NULL), GUARD_UPDATE);
    assert_int_equal(guard_judge(NULL, 1, (double)NAN, 9, "bad"), GUARD_STOP);
    struct guard guard = make(CONFIG_GUARD_ROLLBACK, CONFIG_GUARD_OFF, 8, 2);
    for (int64_t step = 1; step < 30; step++) { /* off: no figure is a spike */
        assert_int_equal(guard_judge(&guard, step, step == 20 ? 1e9 : 3, 1, NULL), GUARD_UPDATE);
    }
    assert_int_equal(guard_judge(&guard, 30, (double)NAN, 1, "bad"), GUARD_ROLLBACK);
    const struct guard_state was = kept;
    kept = (struct guard_state){0};
    guard_went_back(&kept, &was, 30, 20);
    assert_int_equal(kept.passed, 10);
    for (int64_t step = 21; step < 25; step++) {
        assert_int_equal(usual(&guard, step), GUARD_UPDATE);
    }
    assert_int_equal(kept.returns, 1); /* gained nothing yet */
    assert_int_equal(guard_judge(&guard, 25, 3, (double)INFINITY, "bad"), GUARD_ROLLBACK);
    const struct guard_state again = kept;
    guard_went_back(&kept, &again, 25, 20);
    assert_int_equal(kept.passed, 15);
    assert_int_equal(kept.rollbacks, 2);
    assert_int_equal(guard_judge(&guard, 25, 3, (double)INFINITY, "bad"), GUARD_STOP);
    assert_int_equal(usual(&guard, 25 + 8 + 1), GUARD_UPDATE); /* a window gained */
    assert_int_equal(guard_judge(&guard, 40, 3, (double)INFINITY, "bad"), GUARD_ROLLBACK);
}

static void test_kept(void **state)
{
    (void)state;
    struct guard guard = make(CONFIG_GUARD_STOP, CONFIG_GUARD_SKIP, 16, 3);
    struct guard_state back;
    for (int64_t step = 1; step <= 20; step++) {
        (void)guard_judge(&guard, step, 1.0 / (double)step, 2.0 / (double)(3 * step), NULL);
    }
    kept.skipped = 3;
    kept.passed = 5;
    kept.trouble = 7;
    json_t *json = guard_write(&kept);
    assert_true(guard_read(json, &back));
    json_decref(json);
    assert_int_equal(back.count, kept.count);
    assert_memory_equal(back.loss, kept.loss, (size_t)kept.count * sizeof *kept.loss);
    assert_memory_equal(back.norm, kept.norm, (size_t)kept.count * sizeof *kept.norm);
    assert_true(back.skipped == 3 && back.passed == 5 && back.trouble == 7);
    assert_true(guard_read(NULL, &back));
    assert_int_equal(back.count, 0);
    static const char *const bad[] = {
        "{}", "[]", "{\"skipped\":-1}",
        "{\"skipped\":0,\"skips\":0,\"passed\":0,\"rollbacks\":0,\"returns\":0,\"trouble\":0,"
        "\"loss\":[1],\"grad_norm\":[]}",
        "{\"skipped\":0,\"skips\":0,\"passed\":0,\"rollbacks\":0,\"returns\":0,\"trouble\":0,"
        "\"loss\":[\"1\"],\"grad_norm\":[1]}"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        json_t *one = json_loads(bad[i], 0, NULL);
        assert_non_null(one);
        assert_false(guard_read(one, &back));
        json_decref(one);
    }
}

/* Own work of 8 ranks, 10 ms with 5 % of noise; one of them 1.5 times as slow, or none. */
/* Ranks whose work takes 9 ms for even tokens, 6 of them in experts, with 5 % of noise. */
enum { RANKS = 8 };
static const double EXPERT_PART = 2.0 / 3;

static void make_times(struct straggler_times times[RANKS], uint64_t *random)
{
    for (int r = 0; r < RANKS; r++) {
        *random = *random * 6364136223846793005U + 1442695040888963407U;
        const double noise = (double)(*random >> 40) / (double)(1 << 24) * 0.05;
        times[r] = (struct straggler_times){.own = 9 * (1 + noise), .share = 1};
    }
}

static enum straggler_verdict verdict_on(struct straggler_times times[RANKS], int rank,
                                         enum step_work *work)
{
    double sorted[RANKS];
    struct straggler_times usual;
    for (int r = 0; r < RANKS; r++) {
        times[r].with = times[r].with > times[r].own ? times[r].with : times[r].own;
        times[r].work[WORK_FORWARD_BACKWARD] = times[r].with - times[r].work[WORK_DATA];
    }
    return straggler_judge(times, RANKS, rank, 1.3, EXPERT_PART, sorted, &usual, work);
}

/* One rank that is slow in reading data, in computing, or that is kept from its cores. */
static void test_stragglers(void **state)
{
    (void)state;
    enum { TRIALS = 300 };
    uint64_t random = 12345;
    for (int trial = 0; trial < TRIALS; trial++) {
        const int odd = trial % (RANKS + 1); /* RANKS: none */
        struct straggler_times times[RANKS];
        enum step_work work;
        make_times(times, &random);
        if (odd < RANKS && trial % 3 == 0) {
            times[odd].work[WORK_DATA] = 5;
            times[odd].own += 5;
        } else if (odd < RANKS) {
            (trial % 3 == 1 ? &times[odd].own : &times[odd].with)[0] = 1.5 * times[odd].own;
        }
        for (int r = 0; r < RANKS; r++) {
            const enum straggler_verdict wanted = r != odd         ? STRAGGLER_NONE
                                                  : trial % 3 == 2 ? STRAGGLER_STARVED
                                                                   : STRAGGLER_SLOW;
            assert_int_equal(verdict_on(times, r, &work), wanted);
            assert_true(r != odd || work == (trial % 3 == 0 ? WORK_DATA : WORK_FORWARD_BACKWARD));
        }
    }
}

/* Uneven experts make ranks slow that are not; and a slow one is slow with them, too. */
static void test_tokens(void **state)
{
    (void)state;
    enum step_work work;
    uint64_t random = 54321;
    for (int slow = 0; slow <= RANKS; slow++) { /* RANKS: none */
        struct straggler_times times[RANKS];
        make_times(times, &random);
        for (int r = 0; r < RANKS; r++) {
            times[r].share = 0.4 + 1.2 * r / (RANKS - 1);
            times[r].own *= 1 - EXPERT_PART + EXPERT_PART * times[r].share;
            times[r].own *= r == slow ? 3 : 1;
        }
        for (int r = 0; r < RANKS; r++) {
            assert_int_equal(verdict_on(times, r, &work),
                             r == slow ? STRAGGLER_SLOW : STRAGGLER_NONE);
        }
        times[RANKS - 1].share = 1; /* the same time is not explained then */
        assert_int_equal(verdict_on(times, RANKS - 1, &work), STRAGGLER_SLOW);
    }
}

/* A clock 1 s ahead: every round leaves its offset inside, and each narrows it. */
static void test_clocks(void **state)
{
    (void)state;
    const int64_t ahead = 1000000000;
    int64_t bounds[2] = {INT64_MIN, INT64_MAX}, width = INT64_MAX;
    for (int64_t round = 0; round < 10; round++) {
        const int64_t enter0 = 1000 * round, enter = enter0 + 70 * (round % 3),
                      all = enter > enter0 ? enter : enter0, leave0 = all + 50 + 10 * (round % 4),
                      leave = all + 90 - 7 * round;
        profile_bounds(bounds, enter0, leave0, enter + ahead, leave + ahead);
        assert_true(bounds[0] <= ahead && ahead <= bounds[1]);
        assert_true(bounds[1] - bounds[0] <= width);
        width = bounds[1] - bounds[0];
    }
    assert_true(width < 200);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_limit),      cmocka_unit_test(test_spikes),
        cmocka_unit_test(test_not_finite), cmocka_unit_test(test_kept),
        cmocka_unit_test(test_stragglers), cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_clocks),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    config_free(&config);
    return failed;
}
