#define _POSIX_C_SOURCE 200809L
#include "trainer/commands/output.h"

#include <poll.h>
#include <stdio.h>
#include <unistd.h>

bool output_lost(void)
{
    struct pollfd reader = {.fd = STDOUT_FILENO, .events = POLLOUT};
    const bool flushed = fflush(stdout) == 0, failed = !flushed || ferror(stdout) != 0;
    /* why an earlier write failed is not known any more, but a pipe without a reader is */
    const bool left = poll(&reader, 1, 0) == 1 && (reader.revents & POLLERR) != 0;
    clearerr(stdout);
    return failed && !left;
}
