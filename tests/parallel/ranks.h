/* ranks: tests that run on every rank at once. A failed check ends all ranks at once, so that none
 * waits for another. */
#ifndef TESTS_PARALLEL_RANKS_H
#define TESTS_PARALLEL_RANKS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/comm.h"

struct ranks_test {
    const char *name;
    void (*run)(struct comm *world);
};

#define CHECK(world, condition)                                                                    \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: rank %d of %d: %s\n  last message: %s\n", __FILE__, __LINE__,  \
                    (world)->rank, (world)->size, #condition, status_message());                   \
            comm_abort(world, 1);                                                                  \
        }                                                                                          \
    } while (0)

#define CHECK_EQUAL(world, got, expected)                                                          \
    do {                                                                                           \
        const long long got_ = (long long)(got), expected_ = (long long)(expected);                \
        if (got_ != expected_) {                                                                   \
            fprintf(stderr, "%s:%d: rank %d of %d: %s is %lld, expected %lld\n", __FILE__,         \
                    __LINE__, (world)->rank, (world)->size, #got, got_, expected_);                \
            comm_abort(world, 1);                                                                  \
        }                                                                                          \
    } while (0)

#define CHECK_MESSAGE(world, part)                                                                 \
    do {                                                                                           \
        if (strstr(status_message(), part) == NULL) {                                              \
            fprintf(stderr, "%s:%d: rank %d of %d: message '%s' lacks '%s'\n", __FILE__, __LINE__, \
                    (world)->rank, (world)->size, status_message(), part);                         \
            comm_abort(world, 1);                                                                  \
        }                                                                                          \
    } while (0)

static inline int ranks_run(const struct ranks_test *tests, size_t count)
{
    struct comm world;
    if (comm_open(&world, "auto") != STATUS_OK) {
        fprintf(stderr, "%s\n", status_message());
        return 1;
    }
    for (size_t i = 0; i < count; i++) {
        tests[i].run(&world);
        comm_barrier(&world);
        if (world.rank == 0) {
            printf("ok %s at %d ranks\n", tests[i].name, world.size);
            fflush(stdout);
        }
    }
    comm_close(&world);
    return 0;
}

#define RANKS_TEST(function)                                                                       \
    {                                                                                              \
#function, function                                                                        \
    }
#define RANKS_MAIN(tests) ranks_run(tests, sizeof(tests) / sizeof((tests)[0]))

/* Not NULL; ends the job instead. */
static inline void *ranks_memory(struct comm *world, size_t bytes)
{
    void *memory = calloc(bytes + 1, 1);
    CHECK(world, memory != NULL);
    return memory;
}

#endif
