#define _POSIX_C_SOURCE 200809L
#include "trainer/fault.h"

#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kernels/base/io.h"

/* Of operations that modify, that read. */
static const struct {
    const char *name;
    enum io_fault fault;
    bool modifies, reads;
} kinds[] = {
    {"eio", IO_FAULT_EIO, true, true},
    {"enospc", IO_FAULT_ENOSPC, true, false},
    {"edquot", IO_FAULT_EDQUOT, true, false},
    {"eintr", IO_FAULT_EINTR, true, true},
    {"short", IO_FAULT_SHORT, true, true},
    {"slow", IO_FAULT_SLOW, true, true},
    {"cut", IO_FAULT_CUT, false, true},
    {"flip", IO_FAULT_FLIP, false, true},
    {"kill-before", IO_FAULT_KILL_BEFORE, true, false},
    {"kill-torn", IO_FAULT_KILL_TORN, true, false},
    {"kill-after", IO_FAULT_KILL_AFTER, true, false},
};

/* What happens to one rank at one step. */
static const struct {
    const char *name;
    int signal;    /* it sends itself; 0: none */
    double factor; /* of its gradients */
} events[] = {
    {"kill", SIGKILL, 1},    {"segv", SIGSEGV, 1},  {"stop", SIGSTOP, 1}, {"exit", 0, 1},
    {"nan", 0, (double)NAN}, {"gradient", 0, 1.01}, {"spike", 0, 1000},   {"slow", 0, 1},
    {"weight", 0, 1},        {"bias", 0, 1},
};
enum { EVENTS = sizeof events / sizeof events[0], EXIT = 3, SLOW = 7, WEIGHT = 8, BIAS = 9 };
static const double SLOWER = 0.5; /* that a slow rank takes longer */

struct request {
    enum io_fault fault;
    long long operation; /* 0: none */
    bool reads, onwards;
    int event; /* -1: none */
    long long step;
    int rank;
};

static bool parse_io(const char *text, struct request *request)
{
    char kind[32] = "";
    long long operation = 0;
    int used = 0;
    request->reads = strncmp(text, "read:", 5) == 0;
    if ((!request->reads && strncmp(text, "io:", 3) != 0) ||
        sscanf(strchr(text, ':'), ":%31[a-z-]:%lld%n", kind, &operation, &used) != 2 ||
        operation <= 0) {
        return false;
    }
    const char *rest = strchr(text, ':') + used;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (strcmp(kinds[i].name, kind) == 0 && (*rest == '\0' || strcmp(rest, "+") == 0) &&
            (request->reads ? kinds[i].reads : kinds[i].modifies)) {
            request->fault = kinds[i].fault;
            request->operation = operation;
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
               : status_fail(
                     STATUS_USAGE,
                     "debug.fault: '%s' is neither io:KIND:OPERATION with KIND eio, "
                     "enospc, edquot, eintr, short, slow, kill-before, kill-torn or "
                     "kill-after, nor read:KIND:OPERATION with eio, eintr, short, slow, cut or "
                     "flip, nor KIND:STEP:RANK with KIND kill, segv, stop, exit, nan, "
                     "gradient, spike, slow, weight or bias",
                     text);
}

enum status fault_check(const char *text, int heads)
{
    struct request request;
    TRY(parse(text, &request));
    if (request.event >= 0 && events[request.event].factor != 1 && request.rank < heads) {
        return status_fail(STATUS_USAGE,
                           "debug.fault %s: gradients begin on the last pipeline stage: name a "
                           "rank of it, from %d on",
                           text, heads);
    }
    return STATUS_OK;
}

enum status fault_arm(const char *text)
{
    struct request request;
    TRY(parse(text, &request));
    if (request.operation > 0) {
        (request.reads ? io_fault_arm_reads : io_fault_arm)(request.fault, request.operation,
                                                            request.onwards);
    }
    return STATUS_OK;
}

/* The event of this rank and step; -1: none. A slow rank stays slow. */
static int event_of(const char *text, int64_t step, int rank)
{
    struct request request;
    const bool asked = text != NULL && parse(text, &request) == STATUS_OK && request.event >= 0 &&
                       request.rank == rank;
    const bool now =
        asked && (request.step == step || (request.event == SLOW && step > request.step));
    return now ? request.event : -1;
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

void fault_slow(const char *text, int64_t step, int rank, double seconds)
{
    if (event_of(text, step, rank) == SLOW && seconds > 0) {
        const double more = SLOWER * seconds;
        const struct timespec pause = {(time_t)more, (long)(1e9 * (more - (double)(time_t)more))};
        nanosleep(&pause, NULL);
    }
}

enum fault_flip fault_flips(const char *text, int64_t step, int rank)
{
    const int event = event_of(text, step, rank);
    return event == WEIGHT ? FAULT_FLIP_WEIGHT : event == BIAS ? FAULT_FLIP_BIAS : FAULT_NO_FLIP;
}
