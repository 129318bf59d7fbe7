#define _POSIX_C_SOURCE 200809L
#include "trainer/fault.h"

#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "kernels/base/io.h"

static const struct {
    const char *name;
    enum io_fault fault;
} kinds[] = {
    {"eio", IO_FAULT_EIO},
    {"enospc", IO_FAULT_ENOSPC},
    {"edquot", IO_FAULT_EDQUOT},
    {"eintr", IO_FAULT_EINTR},
    {"short", IO_FAULT_SHORT},
    {"slow", IO_FAULT_SLOW},
    {"kill-before", IO_FAULT_KILL_BEFORE},
    {"kill-torn", IO_FAULT_KILL_TORN},
    {"kill-after", IO_FAULT_KILL_AFTER},
};

/* What happens to one rank at one step. */
static const struct {
    const char *name;
    int signal;    /* it sends itself; 0: none */
    double factor; /* of its gradients */
} events[] = {
    {"kill", SIGKILL, 1}, {"segv", SIGSEGV, 1},    {"stop", SIGSTOP, 1},
    {"exit", 0, 1},       {"nan", 0, (double)NAN}, {"gradient", 0, 1.01},
};
enum { EVENTS = sizeof events / sizeof events[0], EXIT = 3 };

struct request {
    enum io_fault fault;
    long long operation; /* 0: none */
    bool onwards;
    int event; /* -1: none */
    long long step;
    int rank;
};

static bool parse_io(const char *text, struct request *request)
{
    char kind[32] = "";
    int used = 0;
    if (sscanf(text, "io:%31[a-z-]:%lld%n", kind, &request->operation, &used) != 2 ||
        request->operation <= 0) {
        request->operation = 0;
        return false;
    }
    const char *rest = text + used;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (strcmp(kinds[i].name, kind) == 0 && (*rest == '\0' || strcmp(rest, "+") == 0)) {
            request->fault = kinds[i].fault;
            request->onwards = *rest == '+';
            return true;
        }
    }
    return false;
}

static bool parse_event(const char *text, struct request *request)
{
    char kind[32] = "", rest = '\0';
    if (sscanf(text, "%31[a-z]:%lld:%d%c", kind, &request->step, &request->rank, &rest) != 3 ||
        request->step < 1 || request->rank < 0) {
        return false;
    }
    for (int i = 0; i < EVENTS; i++) {
        if (strcmp(events[i].name, kind) == 0) {
            request->event = i;
            return true;
        }
    }
    return false;
}

static enum status parse(const char *text, struct request *request)
{
    *request = (struct request){.event = -1};
    return text == NULL || parse_io(text, request) || parse_event(text, request)
               ? STATUS_OK
               : status_fail(STATUS_USAGE,
                             "debug.fault: '%s' is neither io:KIND:OPERATION with KIND eio, "
                             "enospc, edquot, eintr, short, slow, kill-before, kill-torn or "
                             "kill-after, "
                             "nor KIND:STEP:RANK with KIND kill, segv, stop, exit, nan or gradient",
                             text);
}

enum status fault_check(const char *text)
{
    struct request request;
    return parse(text, &request);
}

enum status fault_arm(const char *text)
{
    struct request request;
    TRY(parse(text, &request));
    if (request.operation > 0) {
        io_fault_arm(request.fault, request.operation, request.onwards);
    }
    return STATUS_OK;
}

/* The event of this rank and step; -1: none. */
static int event_of(const char *text, int64_t step, int rank)
{
    struct request request;
    const bool asked = text != NULL && parse(text, &request) == STATUS_OK && request.event >= 0;
    return asked && request.step == step && request.rank == rank ? request.event : -1;
}

void fault_step(const char *text, int64_t step, int rank)
{
    const int event = event_of(text, step, rank);
    if (event == EXIT) {
        _exit(1);
    }
    if (event >= 0 && events[event].signal != 0) {
        raise(events[event].signal);
    }
}

double fault_gradient(const char *text, int64_t step, int rank)
{
    const int event = event_of(text, step, rank);
    return event >= 0 ? events[event].factor : 1;
}
