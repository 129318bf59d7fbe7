/* A run's metrics as columns: what is there, what comes later, what was taken back. */
#include "unit/scratch.h"

#include <math.h>
#include <stdio.h>

#include "trainer/report/history.h"

static void write_lines(const char *mode, const char *text)
{
    FILE *out = fopen("metrics.jsonl", mode);
    assert_non_null(out);
    fputs(text, out);
    fclose(out);
}

static void test_columns(void **state)
{
    (void)state;
    struct history history;
    write_lines("w", "{\"step\":1,\"loss\":2.5,\"valid_loss\":null,\"expert_load\":[1.5,2],\"phase_"
                     "ms\":{\"data\":1}}\n{\"step\":2,\"loss\":2,\"valid_loss\":3,\"expert_load\":"
                     "[1,4],\"phase_ms\":{\"data\":2,\"save\":7}}\n{\"step\":3,\"lo");
    assert_int_equal(history_open(&history, "."), STATUS_OK);
    assert_int_equal(history.count, 2); /* the third line is not whole yet */
    assert_int_equal(history.step[1], 2);
    assert_true(history_values(&history, "loss")[0] == 2.5);
    assert_true(isnan(history_values(&history, "valid_loss")[0]));
    assert_true(isnan(history_values(&history, "phase_ms.save")[0]));
    assert_true(history_last(&history, "phase_ms.save") == 7);
    assert_true(history_last(&history, "phase_ms.data") == 2);
    assert_null(history_values(&history, "mtp_loss"));
    assert_true(isnan(history_last(&history, "mtp_loss")));
    assert_int_equal(history.blocks, 2);
    assert_true(history.load[3] == 4.0F);

    write_lines("a", "ss\":1,\"mtp_loss\":9}\n");
    assert_int_equal(history_follow(&history), STATUS_OK);
    assert_int_equal(history.count, 3);
    assert_true(history_last(&history, "loss") == 1);
    assert_true(isnan(history_values(&history, "mtp_loss")[1]));
    assert_true(history_last(&history, "valid_loss") == 3);

    write_lines("w", "{\"step\":1,\"loss\":8}\n"); /* resumed from an older checkpoint */
    assert_int_equal(history_follow(&history), STATUS_OK);
    assert_int_equal(history.count, 1);
    assert_true(history_last(&history, "loss") == 8);
    assert_null(history_values(&history, "valid_loss"));
    history_close(&history);
    history_close(&history);
}

/* More steps than the first allocation holds, keys that appear late. */
static void test_growth(void **state)
{
    (void)state;
    enum { STEPS = 1000 };
    struct history history;
    write_lines("w", "");
    for (int s = 1; s <= STEPS; s++) {
        char line[128];
        snprintf(line, sizeof line, "{\"step\":%d,\"loss\":%d%s,\"expert_load\":[%d,1,1]}\n", s, -s,
                 s > 700 ? ",\"late\":1" : "", s);
        write_lines("a", line);
    }
    assert_int_equal(history_open(&history, "."), STATUS_OK);
    assert_int_equal(history.count, STEPS);
    for (int s = 1; s <= STEPS; s++) {
        assert_int_equal(history.step[s - 1], s);
        assert_true(history_values(&history, "loss")[s - 1] == -s);
        assert_true(isnan(history_values(&history, "late")[s - 1]) == (s <= 700));
        assert_true(history.load[3 * (s - 1)] == (float)s);
    }
    history_close(&history);
}

static void test_refused(void **state)
{
    (void)state;
    struct history history;
    write_lines("w", "{\"step\":1}\n{\"loss\":1}\n");
    assert_int_equal(history_open(&history, "."), STATUS_DATA);
    assert_non_null(strstr(status_message(), "metrics.jsonl:2: not an object with a step"));
    history_close(&history);
    assert_int_equal(history_open(&history, "/nowhere"), STATUS_IO);
    assert_non_null(strstr(status_message(), "/nowhere/metrics.jsonl: no such file"));
    history_close(&history);
}

int main(void)
{
    const struct CMUnitTest tests[] = {SCRATCH_TEST(test_columns), SCRATCH_TEST(test_growth),
                                       SCRATCH_TEST(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
