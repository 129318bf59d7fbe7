/* What a trial of a sweep has done: a step whose evaluation is still to be made is not done. */
#include "unit/scratch.h"

#include <math.h>

#include "trainer/sweep/trial.h"

static void test_pending(void **state)
{
    (void)state;
    char dir[] = ".", metric[] = "valid_loss";
    const struct sweep_plan plan = {.dir = dir, .metric = metric};
    struct sweep_trial trial = {0};
    assert_int_equal(io_make_dir("0000"), STATUS_OK);
    put("0000/metrics.jsonl", "{\"step\":1,\"loss\":3,\"valid_loss\":2.5}\n"
                              "{\"step\":2,\"loss\":2,\"valid_loss\":null}\n");
    trial_look(&trial, &plan, 0);
    assert_int_equal(trial.step, 2);
    assert_true(trial.value == 2.5);
    put("0000/metrics.pending", "{\"step\":2,\"loss\":2,\"valid_loss\":null}\n");
    trial_look(&trial, &plan, 0);
    assert_int_equal(trial.step, 1);
    put("0000/metrics.pending", "{\"step\":1,\"loss\":3,\"valid_loss\":null}\n");
    trial_look(&trial, &plan, 2);
    assert_int_equal(trial.step, 0);
    assert_true(isnan(trial.value));
}

int main(void)
{
    const struct CMUnitTest tests[] = {SCRATCH_TEST(test_pending)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
