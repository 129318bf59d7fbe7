/* Signals that come again: the same request, but for a second SIGINT a second later. */
#define _GNU_SOURCE
#include "unit/scratch.h"

#include <time.h>

#include "trainer/signals.h"

/* In a child, whose stderr goes to a file: its exit code. */
static int code_of(void (*work)(void))
{
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) {
        signals_install();
        if (freopen("stderr", "w", stderr) == NULL) {
            _exit(1);
        }
        work();
        _exit(0);
    }
    int how = 0;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_true(WIFEXITED(how));
    return WEXITSTATUS(how);
}

static void expect_stderr(const char *text)
{
    char *read = NULL;
    size_t bytes = 0;
    assert_int_equal(io_read_file("stderr", &read, &bytes, 4096), STATUS_OK);
    assert_int_equal(bytes, strlen(text));
    assert_memory_equal(read, text, bytes);
    free(read);
}

static void again(int number)
{
    for (int i = 0; i < 3; i++) {
        raise(number);
    }
    if (signals_caught() != number) {
        _exit(1);
    }
}

static void again_usr1(void)
{
    again(SIGUSR1);
    raise(SIGTERM); /* the first counts */
    again(SIGUSR1);
    raise(SIGINT);
}

static void again_term(void)
{
    again(SIGTERM);
}

static void again_int(void) /* within a second */
{
    again(SIGINT);
}

static void pressed_again(void)
{
    raise(SIGTERM);
    raise(SIGINT);
    raise(SIGINT);
    nanosleep(&(struct timespec){1, 100000000}, NULL);
    raise(SIGTERM);
    raise(SIGINT);
}

static void test_again(void **state)
{
    (void)state;
    void (*const work[])(void) = {again_usr1, again_term, again_int};
    for (size_t i = 0; i < sizeof work / sizeof work[0]; i++) {
        assert_int_equal(code_of(work[i]), 0);
        expect_stderr("");
    }
}

static void test_pressed_again(void **state)
{
    (void)state;
    assert_int_equal(code_of(pressed_again), 130);
    expect_stderr("switchyard: interrupted again: ends at once, nothing more is saved\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(test_again),
        SCRATCH_TEST(test_pressed_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
