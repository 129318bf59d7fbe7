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

/* The evaluation of step 3 begins, and ends or not; the run resumes at `step`. */
static void resume_at(struct metrics *metrics, struct device **device, bool ends, int64_t step)
{
    const struct step_result result = {.loss = 2, .tokens = 10, .step_ms = 1};
    if (io_exists("metrics.jsonl")) {
        assert_int_equal(io_remove("metrics.jsonl"), STATUS_OK);
    }
    begin(metrics, device);
    steps(metrics, 1, 2, 1);
    metrics_begin_evaluation(metrics, 3, &result, &stepper);
    if (ends) {
        metrics_step(metrics, 3, &result, 1.5, &stepper);
        metrics_end_evaluation(metrics);
    }
    metrics_close(metrics);
    *metrics = (struct metrics){.device = *device, .steps = 100, .every = 100, .first_step = 1};
    assert_int_equal(metrics_open(metrics, ".", step), STATUS_OK);
}

static void expect_valid(const char *value)
{
    char *text = NULL, wanted[64];
    size_t bytes = 0;
    assert_int_equal(io_read_file("metrics.jsonl", &text, &bytes, 1 << 20), STATUS_OK);
    const char *line = strstr(text, "{\"step\":3,");
    assert_non_null(line);
    snprintf(wanted, sizeof wanted, "\"valid_loss\":%s,", value);
    assert_non_null(strstr(line, wanted));
    free(text);
}

/* A run that is killed in an evaluation, or leaves it, has it made up for where it resumes at that
 * step, and there only. */
static void test_evaluation(void **state)
{
    (void)state;
    struct metrics metrics;
    struct device *device;
    resume_at(&metrics, &device, true, 3);
    assert_null(metrics.pending);
    expect_valid("1.5");
    end(&metrics, device, STATUS_OK);
    resume_at(&metrics, &device, false, 2);
    assert_null(metrics.pending);
    assert_false(io_exists("metrics.pending"));
    end(&metrics, device, STATUS_OK);
    for (int left = 0; left < 2; left++) {
        const struct step_result result = {.loss = 2, .tokens = 10, .step_ms = 1};
        resume_at(&metrics, &device, false, 3);
        assert_non_null(metrics.pending);
        if (left) { /* once more */
            metrics_step(&metrics, 3, &result, (double)NAN, &stepper);
            expect_valid("null");
            metrics_close(&metrics);
            metrics = (struct metrics){.device = device, .steps = 100, .every = 100};
            assert_int_equal(metrics_open(&metrics, ".", 3), STATUS_OK);
            assert_non_null(metrics.pending);
        }
        metrics_make_up(&metrics, 1.25);
        assert_false(io_exists("metrics.pending"));
        expect_valid("1.25");
        steps(&metrics, 4, 5, 2);
        expect_steps(2, 5);
        end(&metrics, device, STATUS_OK);
    }
}

#define METRICS_TEST(function)                                                                     \
    cmocka_unit_test_setup_teardown(function, scratch_enter, scratch_leave)

int main(void)
{
    const struct CMUnitTest tests[] = {
        METRICS_TEST(test_goes_back),   METRICS_TEST(test_cannot_be_read),
        METRICS_TEST(test_never_again), METRICS_TEST(test_starts_again),
        METRICS_TEST(test_evaluation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
