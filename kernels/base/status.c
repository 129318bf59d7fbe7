#include "kernels/base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Like errno: per thread, written by status_fail only. */
static _Thread_local char message[2048];

void status_clean(char *text)
{
    for (; *text != '\0'; text++) {
        *text = (unsigned char)*text < ' ' || *text == '\x7f' ? '?' : *text;
    }
}

enum status status_fail(enum status status, const char *format, ...)
{
    char text[sizeof message]; /* arguments may point into `message` */
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    status_clean(text);
    return status_lines(status, text);
}

enum status status_lines(enum status status, const char *lines)
{
    char text[sizeof message]; /* it may be `message` */
    snprintf(text, sizeof text, "%s", lines);
    memcpy(message, text, sizeof message);
    return status;
}

const char *status_message(void)
{
    return message;
}

int status_exit_code(enum status status)
{
    static const int code[] = {
        [STATUS_OK] = 0,        [STATUS_DIFFERENT] = 1, [STATUS_USAGE] = 64,     [STATUS_DATA] = 65,
        [STATUS_MISMATCH] = 65, [STATUS_INTERNAL] = 70, [STATUS_RESOURCE] = 71,  [STATUS_IO] = 74,
        [STATUS_HANG] = 76,     [STATUS_DIVERGED] = 77, [STATUS_PREEMPTED] = 85,
    };
    return code[status];
}
