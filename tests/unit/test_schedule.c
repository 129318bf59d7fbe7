/* schedule: the learning rate at the steps where its form changes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "trainer/schedule.h"

static double rate(int kind, int64_t steps, int64_t warmup, int64_t step)
{
    struct config config = {0};
    config.run.steps = steps;
    config.optimizer.lr = 0.5;
    config.schedule.kind = kind;
    config.schedule.warmup_steps = warmup;
    config.schedule.final_lr_ratio = 0.2;
    return schedule_lr(&config, step);
}

static void test_key_steps(void **state)
{
    (void)state;
    static const struct {
        int kind;
        int64_t steps, warmup, step;
        double expected; /* peak 0.5, last 0.1 */
    } cases[] = {
        {CONFIG_CONSTANT, 100, 10, 1, 0.05},
        {CONFIG_CONSTANT, 100, 10, 5, 0.25},
        {CONFIG_CONSTANT, 100, 10, 10, 0.5},
        {CONFIG_CONSTANT, 100, 10, 11, 0.5},
        {CONFIG_CONSTANT, 100, 10, 100, 0.5},
        {CONFIG_CONSTANT, 100, 0, 1, 0.5},
        {CONFIG_COSINE, 110, 10, 1, 0.05},
        {CONFIG_COSINE, 110, 10, 10, 0.5},
        {CONFIG_COSINE, 110, 10, 35, 0.1 + 0.4 * 0.853553390593273762},
        {CONFIG_COSINE, 110, 10, 60, 0.3},
        {CONFIG_COSINE, 110, 10, 110, 0.1},
        {CONFIG_COSINE, 110, 10, 200, 0.1}, /* past the end it stays */
        {CONFIG_COSINE, 100, 0, 50, 0.3},
        {CONFIG_COSINE, 10, 10, 10, 0.5}, /* nothing but warm-up */
        {CONFIG_COSINE, 10, 20, 10, 0.25},
        {CONFIG_WSD, 100, 10, 1, 0.05},
        {CONFIG_WSD, 100, 10, 10, 0.5},
        {CONFIG_WSD, 100, 10, 80, 0.5},
        {CONFIG_WSD, 100, 10, 85, 0.4},
        {CONFIG_WSD, 100, 10, 90, 0.3},
        {CONFIG_WSD, 100, 10, 100, 0.1},
        {CONFIG_WSD, 100, 90, 90, 0.5}, /* warm-up reaches into the last fifth */
        {CONFIG_WSD, 100, 90, 95, 0.3},
        {CONFIG_WSD, 100, 90, 100, 0.1},
        {CONFIG_WSD, 100, 100, 100, 0.5},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const double got = rate(cases[i].kind, cases[i].steps, cases[i].warmup, cases[i].step);
        if (!(fabs(got - cases[i].expected) <= 1e-12)) {
            fail_msg("kind %d, %d steps, warm-up %d, step %d: %.17g, expected %.17g", cases[i].kind,
                     (int)cases[i].steps, (int)cases[i].warmup, (int)cases[i].step, got,
                     cases[i].expected);
        }
    }
}

/* Up during warm-up, never up afterwards, always finite and within bounds. */
static void test_shape(void **state)
{
    (void)state;
    static const int64_t warmups[] = {0, 1, 37, 199, 200};
    for (int kind = CONFIG_CONSTANT; kind <= CONFIG_WSD; kind++) {
        for (size_t w = 0; w < sizeof warmups / sizeof warmups[0]; w++) {
            for (int64_t step = 1; step <= 210; step++) {
                const double lr = rate(kind, 200, warmups[w], step),
                             next = rate(kind, 200, warmups[w], step + 1);
                assert_true(lr > 0 && lr <= 0.5 && (lr > 0.1 - 1e-12 || step < warmups[w]));
                assert_true(step < warmups[w] ? next > lr : next <= lr + 1e-12);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_key_steps),
        cmocka_unit_test(test_shape),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
