/* counts: how much of its cases a test runs, as ./check says by the environment.
 */
#ifndef TESTS_COUNTS_H
#define TESTS_COUNTS_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static inline bool counts_set(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && strcmp(value, "1") == 0;
}

/* ./check --full, the build without sanitizers: all of them. */
static inline bool counts_full(void)
{
    return counts_set("SWITCHYARD_FULL");
}

/* Plain ./check: a sample of what is the same code again. */
static inline bool counts_thin(void)
{
    return counts_set("SWITCHYARD_THIN");
}

#endif
