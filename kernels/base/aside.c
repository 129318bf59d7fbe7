#include "kernels/base/aside.h"

#include <stdio.h>
#include <string.h>

enum status aside_move(const char *path, char old[ASIDE_PATH_BYTES])
{
    char from[ASIDE_PATH_BYTES];
    size_t length = strlen(path);
    old[0] = '\0';
    while (length > 1 && path[length - 1] == '/') {
        length--;
    }
    snprintf(from, sizeof from, "%.*s", (int)length, path);
    for (int n = 1; io_exists(from); n++) {
        if (snprintf(old, ASIDE_PATH_BYTES, "%s.old-%d", from, n) >= ASIDE_PATH_BYTES) {
            return status_fail(STATUS_IO, "path too long to be kept beside: %s", path);
        }
        if (!io_exists(old)) {
            return io_rename(from, old);
        }
    }
    return STATUS_OK;
}
