/* scratch: an empty folder as working directory for each test, and what tests do with small files
 * and messages. */
#ifndef TESTS_UNIT_SCRATCH_H
#define TESTS_UNIT_SCRATCH_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "counts.h"
#include "kernels/base/io.h"

static inline int scratch_enter(void **state)
{
    const bool fast = access("/dev/shm", W_OK) == 0; /* in memory: a sync costs nothing */
    char *folder = strdup(fast ? "/dev/shm/switchyard-test-XXXXXX" : "/tmp/switchyard-test-XXXXXX");
    *state = folder;
    io_fault_arm(IO_FAULT_NONE, 0, false);
    return folder == NULL || mkdtemp(folder) == NULL || chdir(folder) != 0;
}

static inline int scratch_leave(void **state)
{
    io_fault_arm(IO_FAULT_NONE, 0, false);
    io_fault_arm_reads(IO_FAULT_NONE, 0, false);
    const int failed = chdir("/") != 0 || io_remove_tree(*state) != STATUS_OK;
    free(*state);
    return failed;
}

#define SCRATCH_TEST(name) cmocka_unit_test_setup_teardown(name, scratch_enter, scratch_leave)

static inline void put(const char *path, const char *text)
{
    assert_int_equal(io_write_file(path, text, strlen(text)), STATUS_OK);
}

/* Every part (ended by NULL, at most `most`) stands in the last message. */
static inline void expect_parts(const char *const *parts, int most, const char *input)
{
    for (int i = 0; i < most && parts[i] != NULL; i++) {
        if (strstr(status_message(), parts[i]) == NULL) {
            fail_msg("of\n%s\nthe message\n%s\nlacks\n%s", input, status_message(), parts[i]);
        }
    }
}

static inline void expect_message(const char *part)
{
    expect_parts(&part, 1, "(see the test)");
}

/* Runs `work` in a child whose k-th operation meets `fault`; true when that killed it. */
static inline bool killed(enum status (*work)(void), enum io_fault fault, int64_t k)
{
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) {
        io_fault_arm(fault, k, false);
        _exit(work() == STATUS_OK ? 0 : 1);
    }
    int how = 0;
    assert_int_equal(waitpid(child, &how, 0), child);
    if (WIFSIGNALED(how)) {
        assert_int_equal(WTERMSIG(how), SIGKILL);
        return true;
    }
    assert_int_equal(WEXITSTATUS(how), 0);
    return false;
}

#endif
