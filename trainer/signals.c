#define _GNU_SOURCE
#include "trainer/signals.h"

#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t caught; /* a handler can reach nothing else */

static void handle(int number)
{
    if (caught != 0 && caught == number) {
        _exit(128 + number);
    }
    caught = number;
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
