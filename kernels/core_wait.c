#define _GNU_SOURCE
#include "kernels/core_wait.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

enum status core_wait_open(struct core_wait *wait, int threads)
{
    int missing = 0;
    *wait = (struct core_wait){.fd = calloc((size_t)threads, sizeof *wait->fd)};
    if (wait->fd == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for %d threads", threads);
    }
    wait->threads = threads;
    /* one iteration to each thread, the first to the caller */
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int i = 0; i < threads; i++) {
        wait->fd[i] = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    }
    for (int i = 0; i < threads; i++) {
        missing += wait->fd[i] < 0;
    }
    if (missing > 0) {
        core_wait_close(wait);
    }
    return STATUS_OK;
}

void core_wait_close(struct core_wait *wait)
{
    for (int i = 0; i < wait->threads; i++) {
        if (wait->fd[i] >= 0) {
            close(wait->fd[i]);
        }
    }
    free(wait->fd);
    *wait = (struct core_wait){0};
}

/* "RAN WAITED TIMES" */
int64_t core_wait_ns(const struct core_wait *wait, int thread)
{
    char text[96];
    const ssize_t got = pread(wait->fd[thread], text, sizeof text - 1, 0);
    if (got <= 0) {
        return 0;
    }
    text[got] = '\0';
    char *second = NULL;
    (void)strtoll(text, &second, 10);
    return strtoll(second, NULL, 10);
}
