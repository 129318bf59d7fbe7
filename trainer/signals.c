#define _GNU_SOURCE
#include "trainer/signals.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* A handler can reach nothing else; signals may come to several threads at once. */
static volatile sig_atomic_t caught;
static _Atomic int64_t interrupted_us; /* the first SIGINT, on the monotonic clock; 0: none */

static int64_t clock_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1000000 * (int64_t)now.tv_sec + now.tv_nsec / 1000 + 1;
}

/* A launcher and the terminal may both pass on what was pressed once: that is no second one. */
static void handle_interrupt(void)
{
    static const char line[] =
        "switchyard: interrupted again: ends at once, nothing more is saved\n";
    int64_t first = 0;
    const int64_t now = clock_us();
    if (!atomic_compare_exchange_strong(&interrupted_us, &first, now) && now - first >= 1000000) {
        const ssize_t ignored = write(STDERR_FILENO, line, sizeof line - 1);
        (void)ignored;
        _exit(128 + SIGINT);
    }
}

static void handle(int number)
{
    const int error = errno;
    if (number == SIGINT) {
        handle_interrupt();
    }
    caught = caught == 0 ? number : caught;
    errno = error;
}

void signals_install(void)
{
    struct sigaction action = {0};
    action.sa_handler = handle;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
}

int signals_caught(void)
{
    return caught;
}

enum status signals_check(void)
{
    return caught == 0 ? STATUS_OK
                       : status_fail(STATUS_PREEMPTED, "stopped by a signal (%s): nothing is left",
                                     strsignal(caught));
}

int signals_agreed(struct comm *world)
{
    int32_t signal = caught;
    comm_all_reduce(world, &signal, 1, DTYPE_I32, REDUCE_MAX);
    return signal;
}

enum status signals_end(struct comm *world, enum status status)
{
    const int signal = status == STATUS_PREEMPTED ? signals_agreed(world) : 0;
    if (status != STATUS_OK && world->rank == 0) {
        fprintf(stderr, "switchyard: %s\n", status_message());
    }
    comm_close(world);
    if (signal != 0) {
        exit(128 + signal);
    }
    return status == STATUS_OK ? STATUS_OK : status_fail(status, "%s", "");
}
