/* line_log: lines reach the file whole and in order, whatever room it finds; what never finds any
 * is counted. The room is RLIMIT_FSIZE, which stops writes in the middle as a full disk does. */
#define _GNU_SOURCE
#include "unit/scratch.h"

#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>

#include "trainer/line_log.h"

static const char name[] = "log";

/* Files may have so many bytes; RLIM_INFINITY: as many as they want. */
static void limit(rlim_t bytes)
{
    struct rlimit rlimit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &rlimit), 0);
    rlimit.rlim_cur = bytes < rlimit.rlim_max ? bytes : rlimit.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &rlimit), 0);
}

static int enter(void **state)
{
    signal(SIGXFSZ, SIG_IGN);
    return scratch_enter(state);
}

static int leave(void **state)
{
    limit(RLIM_INFINITY);
    return scratch_leave(state);
}

static enum status add(struct line_log *log, int64_t number)
{
    char line[64];
    snprintf(line, sizeof line, "line %lld of the run\n", (long long)number);
    return line_log_add(log, line, strlen(line), number);
}

/* The file holds lines first .. last and nothing else. */
static void expect_lines(int64_t first, int64_t last)
{
    char *text = NULL;
    size_t bytes = 0;
    assert_int_equal(io_read_file(name, &text, &bytes, 1 << 24), STATUS_OK);
    const char *at = text;
    for (int64_t i = first; i <= last; i++) {
        char line[64];
        snprintf(line, sizeof line, "line %lld of the run\n", (long long)i);
        assert_memory_equal(at, line, strlen(line));
        at += strlen(line);
    }
    assert_int_equal(at - text, bytes);
    free(text);
}

/* At every number of bytes that there is room for. */
static void test_room_comes_back(void **state)
{
    (void)state;
    enum { LINES = 6 };
    for (rlim_t room = 0; room < LINES * 18; room++) {
        struct line_log log;
        int64_t failed = 0;
        assert_int_equal(io_remove(name), STATUS_OK);
        assert_int_equal(line_log_open(&log, name), STATUS_OK);
        limit(room);
        for (int64_t i = 1; i <= LINES; i++) {
            failed += add(&log, i) != STATUS_OK;
        }
        const enum status status = line_log_settle(&log);
        limit(RLIM_INFINITY);
        assert_int_equal(status, STATUS_IO);
        expect_message("log: cannot write: File too large");
        assert_int_equal(failed, LINES - (int64_t)room / 18);
        assert_int_equal(log.kept_lines, failed);
        expect_lines(1, LINES - failed);
        assert_int_equal(add(&log, LINES + 1), STATUS_OK);
        assert_int_equal(line_log_settle(&log), STATUS_OK);
        expect_lines(1, LINES + 1);
        line_log_close(&log);
        line_log_close(&log);
    }
}

static void test_closing_tries_again(void **state)
{
    (void)state;
    struct line_log log;
    assert_int_equal(line_log_open(&log, name), STATUS_OK);
    limit(20);
    assert_int_equal(add(&log, 1), STATUS_OK);
    assert_int_equal(add(&log, 2), STATUS_IO);
    limit(RLIM_INFINITY);
    line_log_close(&log);
    expect_lines(1, 2);
    assert_int_equal(line_log_open(&log, name), STATUS_OK); /* behind what is there */
    assert_int_equal(add(&log, 3), STATUS_OK);
    line_log_close(&log);
    expect_lines(1, 3);
}

/* Memory has an end, too: the oldest lines stay, and which are lost is known. */
static void test_what_is_lost_is_known(void **state)
{
    (void)state;
    enum { LONG = 1 << 20, LINES = LINE_LOG_BYTES / LONG };
    struct line_log log;
    char *line = malloc(LONG);
    assert_non_null(line);
    memset(line, 'x', LONG);
    line[LONG - 1] = '\n';
    assert_int_equal(line_log_open(&log, name), STATUS_OK);
    limit(0);
    for (int64_t i = 0; i < LINES + 3; i++) {
        assert_int_equal(line_log_add(&log, line, LONG, 100 + i), STATUS_IO);
    }
    limit(RLIM_INFINITY);
    assert_int_equal(log.kept_lines, LINES);
    assert_int_equal(log.lost, 3);
    assert_int_equal(line_log_settle(&log), STATUS_IO);
    char expected[64];
    snprintf(expected, sizeof expected, "3 lines of steps %d to %d are lost", 100 + LINES,
             102 + LINES);
    expect_message(expected);
    assert_int_equal(log.kept_lines, 0);
    line_log_close(&log);
    free(line);
}

/* Back to an earlier line: of the file, or of what is kept. */
static void test_taken_out(void **state)
{
    (void)state;
    struct line_log log;
    assert_int_equal(line_log_open(&log, name), STATUS_OK);
    limit(3 * 18 + 5);
    for (int64_t i = 1; i <= 6; i++) {
        (void)!add(&log, i);
    }
    line_log_drop(&log, 18);
    assert_int_equal(log.kept_lines, 1);
    limit(RLIM_INFINITY);
    assert_int_equal(add(&log, 5), STATUS_OK);
    expect_lines(1, 5);
    limit(5 * 18 + 5);
    assert_int_equal(add(&log, 6), STATUS_IO);
    line_log_drop(&log, 0);
    assert_int_equal(line_log_cut(&log, 2 * 18), STATUS_OK);
    expect_lines(1, 2);
    assert_int_equal(add(&log, 3), STATUS_OK);
    limit(RLIM_INFINITY);
    expect_lines(1, 3);
    log.held = true;
    assert_int_equal(add(&log, 4), STATUS_IO);
    expect_message("log: holds lines that were to be taken out");
    expect_lines(1, 3);
    log.held = false;
    assert_int_equal(line_log_cut(&log, 3 * 18), STATUS_OK); /* what is kept stays */
    assert_int_equal(line_log_settle(&log), STATUS_OK);
    expect_lines(1, 4);
    line_log_close(&log);
}

static void test_full_device(void **state)
{
    (void)state;
    struct line_log log;
    assert_int_equal(line_log_open(&log, "/dev/full"), STATUS_OK);
    assert_int_equal(add(&log, 1), STATUS_IO);
    expect_message("/dev/full: cannot write: No space left on device");
    assert_int_equal(log.kept_lines, 1);
    assert_int_equal(status_fail(STATUS_DIVERGED, "what ended the run"), STATUS_DIVERGED);
    line_log_close(&log);
    expect_message("what ended the run");
    assert_int_equal(line_log_open(&log, "no/such/folder/log"), STATUS_IO);
    expect_message("no/such/folder/log");
    line_log_close(&log);
}

#define LOG_TEST(function) cmocka_unit_test_setup_teardown(function, enter, leave)

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOG_TEST(test_room_comes_back),       LOG_TEST(test_closing_tries_again),
        LOG_TEST(test_what_is_lost_is_known), LOG_TEST(test_taken_out),
        LOG_TEST(test_full_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
