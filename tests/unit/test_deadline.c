/* run.time_limit: how it is written, and when it is over. */
#include "unit/scratch.h"

#include "trainer/deadline.h"
#include "trainer/step.h"

static void test_written(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        double seconds; /* 0: refused */
    } cases[] = {{"90", 90},       {"90s", 90},      {"1.5m", 90},      {"2h", 7200},
                 {"1d", 86400},    {"10:30", 630},   {"1:00:00", 3600}, {"1-12:00:00", 129600},
                 {"2-00", 172800}, {"1-12", 129600}, {"1-0:30", 88200}, {"0-1:0:5", 3605},
                 {"", 0},          {"0", 0},         {"0s", 0},         {"h", 0},
                 {"2x", 0},        {"2h30m", 0},     {"1:2:3:4", 0},    {"1:", 0},
                 {":1", 0},        {"-5", 0},        {"1--2", 0},       {"1-", 0},
                 {"nan", 0},       {"5 m", 0}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        double seconds = 0;
        const bool good = deadline_seconds(cases[i].text, &seconds);
        if (good != (cases[i].seconds > 0) || (good && seconds != cases[i].seconds)) {
            fail_msg("'%s': %s, %g", cases[i].text, good ? "accepted" : "refused", seconds);
        }
    }
}

static void test_due(void **state)
{
    (void)state;
    struct comm world;
    struct deadline deadline;
    assert_int_equal(comm_open(&world, "self"), STATUS_OK);
    assert_int_equal(deadline_init(&deadline, NULL), STATUS_OK);
    deadline_step(&deadline, 1e9);
    assert_false(deadline_due(&deadline, &world)); /* no limit */
    assert_int_equal(deadline_init(&deadline, "100"), STATUS_OK);
    assert_false(deadline_due(&deadline, &world));
    deadline_step(&deadline, 20);
    deadline_step(&deadline, 10); /* the longest counts */
    assert_false(deadline_due(&deadline, &world));
    deadline_save(&deadline, 29);
    assert_false(deadline_due(&deadline, &world)); /* 98 of 100 needed */
    deadline_save(&deadline, 31);
    assert_true(deadline_due(&deadline, &world));
    assert_int_equal(deadline_init(&deadline, "100"), STATUS_OK);
    deadline.started = step_clock() - 101;
    assert_true(deadline_due(&deadline, &world));
    comm_close(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_written), cmocka_unit_test(test_due)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
