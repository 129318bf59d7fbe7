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
    config.schedule.decay_start = 0.8;
    config.schedule.decay_end = 1;
    config.schedule.milestone_factor = 0.316; /* of no milestones */
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

static double published(const struct config *config, double fraction)
{
    return schedule_lr(config, (int64_t)(fraction * (double)config->run.steps + 0.5));
}

static void expect_rate(const struct config *config, double fraction, double expected)
{
    const double got = published(config, fraction);
    if (!(fabs(got - expected) <= 1e-9 * expected)) {
        fail_msg("at %g of the run: %.17g, expected %.17g", fraction, got, expected);
    }
}

/* DeepSeek-V3 (its report, 4.2): 2K steps up to 2.2e-4, constant to 10T of 14.8T tokens, cosine to
 * 2.2e-5 over 4.3T, 333B at it, 167B at 7.3e-6. */
static void test_deepseek_v3(void **state)
{
    (void)state;
    struct config config = {0};
    const double all = 14.8;
    config.run.steps = 1480000;
    config.optimizer.lr = 2.2e-4;
    config.schedule.kind = CONFIG_WSD;
    config.schedule.warmup_steps = 2000;
    config.schedule.final_lr_ratio = 0.1;
    config.schedule.decay_start = 10 / all;
    config.schedule.decay_end = 14.3 / all;
    config.schedule.decay_shape = CONFIG_HALF_COSINE;
    config.schedule.milestones = (struct config_reals){.count = 1, .item = {14.633 / all}};
    config.schedule.milestone_factor = 7.3 / 22;
    assert_true(fabs(schedule_lr(&config, 1000) - 1.1e-4) < 1e-15);
    expect_rate(&config, 2000.0 / 1480000, 2.2e-4);
    expect_rate(&config, 5 / all, 2.2e-4);
    expect_rate(&config, 10 / all, 2.2e-4);
    expect_rate(&config, 12.15 / all, (2.2e-4 + 2.2e-5) / 2);
    expect_rate(&config, 14.3 / all, 2.2e-5);
    expect_rate(&config, 14.633 / all, 2.2e-5);
    expect_rate(&config, 14.634 / all, 7.3e-6);
    expect_rate(&config, 1, 7.3e-6);
}

/* DeepSeek-V2 (its report, 3.1.2): 2.4e-4, times 0.316 at about 60 % and again at 90 %. */
static void test_deepseek_v2(void **state)
{
    (void)state;
    struct config config = {0};
    config.run.steps = 1000;
    config.optimizer.lr = 2.4e-4;
    config.schedule.kind = CONFIG_MULTISTEP;
    config.schedule.warmup_steps = 20;
    config.schedule.milestones = (struct config_reals){.count = 2, .item = {0.6, 0.9}};
    config.schedule.milestone_factor = 0.316;
    expect_rate(&config, 0.01, 1.2e-4);
    expect_rate(&config, 0.02, 2.4e-4);
    expect_rate(&config, 0.6, 2.4e-4);
    expect_rate(&config, 0.601, 2.4e-4 * 0.316);
    expect_rate(&config, 0.9, 2.4e-4 * 0.316);
    expect_rate(&config, 0.901, 2.4e-4 * 0.316 * 0.316);
    expect_rate(&config, 1, 2.4e-4 * 0.099856);
    config.schedule.milestones.item[0] = 0.57; /* 0.57 * 1000 is no whole number */
    expect_rate(&config, 0.57, 2.4e-4);
    expect_rate(&config, 0.571, 2.4e-4 * 0.316);
}

/* Milestones bend any kind. */
static void test_milestones(void **state)
{
    (void)state;
    for (int kind = CONFIG_CONSTANT; kind <= CONFIG_MULTISTEP; kind++) {
        struct config plain = {0};
        plain.run.steps = 200;
        plain.optimizer.lr = 0.5;
        plain.schedule.kind = kind;
        plain.schedule.warmup_steps = 17;
        plain.schedule.final_lr_ratio = 0.2;
        plain.schedule.decay_start = 0.3;
        plain.schedule.decay_end = 0.7;
        plain.schedule.milestone_factor = 0.25;
        struct config bent = plain;
        bent.schedule.milestones = (struct config_reals){.count = 2, .item = {0.05, 0.5}};
        for (int64_t step = 1; step <= 200; step++) {
            const double factor = step <= 10 ? 1 : step <= 100 ? 0.25 : 0.0625;
            assert_true(schedule_lr(&bent, step) == schedule_lr(&plain, step) * factor);
        }
    }
}

static struct config ramp(int64_t start, int64_t by, int64_t full, int64_t tokens, int64_t length)
{
    struct config config = {0};
    config.train.sequence_length = length;
    config.train.global_batch = full;
    config.train.batch_ramp.start = start;
    config.train.batch_ramp.increment = by;
    config.train.batch_ramp.tokens = tokens;
    return config;
}

/* Megatron's rule, as its calculator has it, on numbers where its doubles are exact. */
static int64_t megatron_batch(int64_t start, int64_t by, int64_t full, double samples, double read)
{
    const double per_size = samples / (double)((full - start) / by);
    return read > samples ? full : start + by * (int64_t)(read / per_size);
}

static void test_batch_ramp(void **state)
{
    (void)state;
    const struct config config = ramp(8, 8, 72, 4096 * 64, 64), off = ramp(0, 0, 72, 0, 64);
    int64_t position = 0, last = 0;
    for (int step = 0; step < 200; step++) {
        const int64_t batch = schedule_batch(&config, position);
        assert_int_equal(batch, megatron_batch(8, 8, 72, 4096, (double)position));
        assert_true(batch >= last);
        assert_int_equal(schedule_position(&config, 0, step), position);
        assert_int_equal(schedule_position(&config, position, 7),
                         schedule_position(&config, 0, step + 7));
        assert_int_equal(schedule_batch(&off, position), 72);
        position += batch;
        last = batch;
    }
    assert_int_equal(last, 72);
    assert_int_equal(schedule_position(&off, 5, 1000), 5 + 72 * 1000);
}

/* DeepSeek-V3: 3072 to 15360 over 469B tokens of 4K sequences; V2: 2304 to 9216 over 225B. */
static void test_published_ramps(void **state)
{
    (void)state;
    const int64_t v3 = 469000000000, v2 = 225000000000;
    const struct config config = ramp(3072, 3072, 15360, v3, 4096);
    assert_int_equal(schedule_batch(&config, 0), 3072);
    assert_int_equal(schedule_batch(&config, v3 / 4096 / 4), 3072); /* rounded down: not yet */
    assert_int_equal(schedule_batch(&config, v3 / 4096 / 4 + 1), 6144);
    assert_int_equal(schedule_batch(&config, v3 / 4096), 12288);
    assert_int_equal(schedule_batch(&config, v3 / 4096 + 1), 15360);
    assert_int_equal(schedule_batch(&config, (int64_t)1 << 40), 15360);
    const struct config fine = ramp(2304, 64, 9216, v2, 4096);
    int64_t position = 0, steps = 0;
    for (; schedule_batch(&fine, position) < 9216; steps++) {
        position += schedule_batch(&fine, position);
    }
    assert_true(position * 4096 >= v2 && (position - 9216) * 4096 < v2);
    assert_int_equal(schedule_position(&fine, 0, steps), position);
    assert_int_equal(schedule_position(&fine, 0, steps + 1000000), position + 9216000000);
}

/* Up during warm-up, never up afterwards, always finite and within bounds. */
static void test_shape(void **state)
{
    (void)state;
    static const int64_t warmups[] = {0, 1, 37, 199, 200};
    for (int kind = CONFIG_CONSTANT; kind <= CONFIG_MULTISTEP; kind++) {
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
        cmocka_unit_test(test_key_steps),       cmocka_unit_test(test_shape),
        cmocka_unit_test(test_deepseek_v2),     cmocka_unit_test(test_deepseek_v3),
        cmocka_unit_test(test_milestones),      cmocka_unit_test(test_batch_ramp),
        cmocka_unit_test(test_published_ramps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
