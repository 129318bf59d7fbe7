#include "trainer/fault.h"

#include <stdio.h>
#include <string.h>

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

struct request {
    enum io_fault fault;
    long long operation; /* 0: none */
    bool onwards;
};

static enum status parse(const char *text, struct request *request)
{
    char kind[32] = "";
    int used = 0;
    *request = (struct request){0};
    if (text == NULL) {
        return STATUS_OK;
    }
    if (sscanf(text, "io:%31[a-z-]:%lld%n", kind, &request->operation, &used) == 2 &&
        request->operation > 0) {
        const char *rest = text + used;
        for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
            if (strcmp(kinds[i].name, kind) == 0 && (*rest == '\0' || strcmp(rest, "+") == 0)) {
                request->fault = kinds[i].fault;
                request->onwards = *rest == '+';
                return STATUS_OK;
            }
        }
    }
    return status_fail(STATUS_USAGE,
                       "debug.fault: '%s' is not io:KIND:OPERATION with KIND eio, enospc, edquot, "
                       "eintr, short, slow, "
                       "kill-before, kill-torn or kill-after",
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
