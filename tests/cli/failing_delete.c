/* Linked into a second switchyard (-Wl,--wrap=io_rename), for test_health.sh: the first removal of
 * the checkpoint whose path ends with DELETE_FAILS fails, as where a file system is away for a
 * moment, and a signal comes with it: the run is to end at the same step edge. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/io.h"

enum status __real_io_rename(const char *from, const char *to);
enum status __wrap_io_rename(const char *from, const char *to);

enum status __wrap_io_rename(const char *from, const char *to)
{
    static bool failed;
    const char *end = getenv("DELETE_FAILS");
    const size_t tail = end != NULL ? strlen(end) : 0, length = strlen(from);
    if (tail == 0 || failed || length < tail || strcmp(from + length - tail, end) != 0) {
        return __real_io_rename(from, to);
    }
    failed = true;
    (void)raise(SIGUSR1);
    return status_fail(STATUS_IO, "%s: not renamed: the test's own failure", from);
}
