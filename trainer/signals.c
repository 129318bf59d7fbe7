#include "trainer/signals.h"

#include <signal.h>
#include <stddef.h>
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
