/* allocations: counts what our own code allocates, and makes it fail.
 *
 * A test program that includes this is linked with --wrap for the functions below
 * (tests/CMakeLists.txt), so that calls from object files linked into it, which is all of ours and
 * the test, come here. Shared libraries (oneDNN, MPI, HDF5, jansson, libgomp, libc itself) are not
 * linked by it: what they allocate for themselves, oneDNN's primitives and qsort's copy say, isn't
 * counted.
 */
#ifndef TESTS_ALLOCATIONS_H
#define TESTS_ALLOCATIONS_H

#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static atomic_llong allocations;         /* so far */
static atomic_llong allocations_failing; /* > 0: so many calls from now, one fails */

/* Counts a call; whether it is to fail. */
static inline int allocations_fail(void)
{
    allocations++;
    return allocations_failing > 0 && --allocations_failing == 0;
}

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *old, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
char *__real_strdup(const char *text);
FILE *__real_open_memstream(char **text, size_t *bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *old, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
char *__wrap_strdup(const char *text);
FILE *__wrap_open_memstream(char **text, size_t *bytes);

void *__wrap_malloc(size_t bytes)
{
    return allocations_fail() ? NULL : __real_malloc(bytes);
}

void *__wrap_calloc(size_t count, size_t bytes)
{
    return allocations_fail() ? NULL : __real_calloc(count, bytes);
}

void *__wrap_realloc(void *old, size_t bytes)
{
    return allocations_fail() ? NULL : __real_realloc(old, bytes);
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    return allocations_fail() ? NULL : __real_aligned_alloc(alignment, bytes);
}

char *__wrap_strdup(const char *text)
{
    return allocations_fail() ? NULL : __real_strdup(text);
}

FILE *__wrap_open_memstream(char **text, size_t *bytes)
{
    return allocations_fail() ? NULL : __real_open_memstream(text, bytes);
}

#endif
