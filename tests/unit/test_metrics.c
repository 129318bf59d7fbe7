/* metrics.jsonl of a run that goes back: lines of steps given up are taken out, and where they
 * can't be, because the file cannot be read or written just then, new ones wait for that. */
#define _GNU_SOURCE
#include "unit/scratch.h"

#include <math.h>
#include <stdio.h>

#include "trainer/metrics.h"

static struct guard_state counts;
static struct guard guard = {.state = &counts};
static const struct stepper stepper = {.guard = &guard};

static void begin(struct metrics *metrics, struct device **device)
{
    const struct device_options options = {.name = "cpu", .threads = 1};
    assert_int_equal(device_open(device, &options), STATUS_OK);
    *metrics = (struct metrics){
        .device = *device, .steps = 100, .every = 100, .first_step = 1, .tokens = 1000};
    assert_int_equal(metrics_open(metrics, ".", 0), STATUS_OK);
}

static void steps(struct metrics *metrics, int64_t first, int64_t last, double loss)
{
    const struct step_result result = {.loss = loss, .tokens = 10, .step_ms = 1};
    for (int64_t step = first; step <= last; step++) {
        metrics_step(metrics, step, &result, (double)NAN, &stepper);
    }
}

/* The file's lines: steps 1 to `last`, those up to `old` of loss 1, the others of loss 2. */
static void expect_steps(int64_t old, int64_t last)
{
    FILE *in = fopen("metrics.jsonl", "r");
    char line[4096];
    int64_t step = 0;
    assert_non_null(in);
    while (fgets(line, sizeof line, in) != NULL) {
        char expected[64];
        step++;
        snprintf(expected, sizeof expected, "{\"step\":%lld,\"tokens\":10,\"loss\":%d,",
                 (long long)step, step <= old ? 1 : 2);
        assert_memory_equal(line, expected, strlen(expected));
    }
    fclose(in);
    assert_int_equal(step, last);
}

static void end(struct metrics *metrics, struct device *device, enum status expected)
{
    assert_int_equal(metrics_finish(metrics, true), expected);
    metrics_close(metrics);
    device_close(device);
}

static void test_goes_back(void **state)
{
    (void)state;
    struct metrics metrics;
    struct device *device;
    begin(&metrics, &device);
    steps(&metrics, 1, 9, 1);
    metrics_rewind(&metrics, 4, 500);
    expect_steps(4, 4);
    steps(&metrics, 5, 12, 2);
    expect_steps(4, 12);
    end(&metrics, device, STATUS_OK);
}

/* At every read, at every operation of the cut, for so many tries: nothing is lost, nothing of the
 * steps given up is left, and until then nothing is mixed. */
static void test_cannot_be_read(void **state)
{
    (void)state;
    for (int64_t operation = 1; operation <= 3; operation++) {
        struct metrics metrics;
        struct device *device;
        assert_int_equal(io_remove("metrics.jsonl"), STATUS_OK);
        begin(&metrics, &device);
        steps(&metrics, 1, 9, 1);
        io_fault_arm_reads(IO_FAULT_EIO, operation, true);
        metrics_rewind(&metrics, 6, 500);
        assert_true(metrics.jsonl.held && metrics.jsonl_fails);
        steps(&metrics, 7, 8, 2);
        metrics_rewind(&metrics, 4, 500); /* back again, behind what is only kept */
        steps(&metrics, 5, 6, 2);
        metrics_rewind(&metrics, 5, 500); /* and among it */
        steps(&metrics, 6, 7, 2);
        expect_steps(9, 9);
        assert_int_equal(metrics.jsonl.kept_lines, 3);
        io_fault_arm_reads(IO_FAULT_NONE, 0, false);
        steps(&metrics, 8, 8, 2);
        assert_false(metrics.jsonl.held || metrics.jsonl_fails);
        expect_steps(4, 8);
        end(&metrics, device, STATUS_OK);
    }
}

/* Never again: the run is told what is lost, and the file is what it was. */
static void test_never_again(void **state)
{
    (void)state;
    struct metrics metrics;
    struct device *device;
    begin(&metrics, &device);
    steps(&metrics, 1, 9, 1);
    assert_int_equal(io_rename("metrics.jsonl", "gone"), STATUS_OK);
    metrics_rewind(&metrics, 4, 500);
    steps(&metrics, 5, 7, 2);
    assert_int_equal(metrics_finish(&metrics, true), STATUS_IO);
    expect_message("its last 3 lines are lost; the checkpoint of step 7 is whole");
    assert_int_equal(io_rename("gone", "metrics.jsonl"), STATUS_OK);
    expect_steps(9, 9);
    end(&metrics, device, STATUS_OK); /* now it can */
    expect_steps(4, 7);
}

/* A run that starts where another left lines, but no checkpoint. */
static void test_starts_again(void **state)
{
    (void)state;
    struct metrics metrics;
    struct device *device;
    for (int run = 1; run <= 2; run++) {
        begin(&metrics, &device);
        assert_false(io_exists(run == 1 ? "metrics.jsonl.old-1" : "metrics.jsonl.old-2"));
        steps(&metrics, 1, 9, run);
        end(&metrics, device, STATUS_OK);
    }
    assert_int_equal(io_rename("metrics.jsonl", "second"), STATUS_OK);
    assert_int_equal(io_rename("metrics.jsonl.old-1", "metrics.jsonl"), STATUS_OK);
    expect_steps(9, 9);
    assert_int_equal(io_rename("second", "metrics.jsonl"), STATUS_OK);
    expect_steps(0, 9);
}

#define METRICS_TEST(function)                                                                     \
    cmocka_unit_test_setup_teardown(function, scratch_enter, scratch_leave)

int main(void)
{
    const struct CMUnitTest tests[] = {
        METRICS_TEST(test_goes_back),
        METRICS_TEST(test_cannot_be_read),
        METRICS_TEST(test_never_again),
        METRICS_TEST(test_starts_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
