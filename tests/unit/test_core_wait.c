/* Waits for a core are counted, of the thread that has them. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/core_wait.h"

static atomic_bool done;

/* Onto one core that the process may use. */
static void pin(void)
{
    cpu_set_t all, one;
    CPU_ZERO(&one);
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    for (int core = 0; core < CPU_SETSIZE && CPU_COUNT(&one) == 0; core++) {
        if (CPU_ISSET((size_t)core, &all)) {
            CPU_SET((size_t)core, &one);
        }
    }
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
}

static void *spin(void *context)
{
    (void)context; /* on its creator's core */
    while (!done) {
    }
    return NULL;
}

/* Two threads that never rest on one core: each waits while the other runs. */
static void test_shared_core(void **state)
{
    (void)state;
    const int64_t wanted = 20000000;
    struct core_wait wait;
    pthread_t other;
    assert_int_equal(core_wait_open(&wait, 1), STATUS_OK);
    if (wait.threads == 0) {
        puts("skipped: this kernel does not count waits for a core");
        return;
    }
    const int64_t before = core_wait_ns(&wait, 0);
    pin();
    assert_int_equal(pthread_create(&other, NULL, spin, NULL), 0);
    while (core_wait_ns(&wait, 0) - before < wanted) { /* ends, or ctest's limit does */
    }
    done = true;
    pthread_join(other, NULL);
    core_wait_close(&wait);
    core_wait_close(&wait);
}

/* The file that is open as `fd`. */
static void name_of(int fd, char *out, size_t bytes)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t length = readlink(link, out, bytes - 1);
    assert_true(length > 0);
    out[length] = '\0';
}

/* A team's threads have figures of their own. */
static void test_team(void **state)
{
    (void)state;
    struct core_wait wait;
    char names[3][128];
    assert_int_equal(core_wait_open(&wait, 3), STATUS_OK);
    assert_true(wait.threads == 3 || wait.threads == 0);
    for (int i = 0; i < wait.threads; i++) {
        assert_true(core_wait_ns(&wait, i) >= 0);
        name_of(wait.fd[i], names[i], sizeof names[i]);
        for (int j = 0; j < i; j++) {
            assert_string_not_equal(names[i], names[j]);
        }
    }
    core_wait_close(&wait);
    assert_int_equal(wait.threads, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_team),
        cmocka_unit_test(test_shared_core),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
