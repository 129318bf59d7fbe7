#define _GNU_SOURCE /* RTLD_DEFAULT */
#include "kernels/base/library.h"

#include <assert.h>
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* The first symbol that is missing, or NULL when all are there. */
static const char *first_missing(void *place, const struct library_symbol *symbols, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (dlsym(place, symbols[i].name) == NULL) {
            return symbols[i].name;
        }
    }
    return NULL;
}

static void fill(void *place, const struct library_symbol *symbols, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        void *address = dlsym(place, symbols[i].name);
        /* ISO C has no conversion between the two; POSIX promises the same bits. */
        memcpy(symbols[i].function, &address, sizeof address);
    }
}

static enum status not_found(const char *const *names, const char *why)
{
    char tried[512] = "";
    for (size_t i = 0; names[i] != NULL; i++) {
        const size_t used = strlen(tried);
        snprintf(tried + used, sizeof tried - used, "%s%s", i > 0 ? ", " : "", names[i]);
    }
    return status_fail(STATUS_RESOURCE, "%s is not usable: %s (tried: the program itself, %s)",
                       names[0], why, tried);
}

enum status library_open(void **handle, const char *const *names,
                         const struct library_symbol *symbols, size_t count)
{
    char why[512] = "";
    bool is_there =
        false; /* `why` is about a library that is there: says more than one that is not */
    assert(count > 0 && names[0] != NULL);
    *handle = NULL;
    if (first_missing(RTLD_DEFAULT, symbols, count) == NULL) {
        fill(RTLD_DEFAULT, symbols, count);
        return STATUS_OK;
    }
    for (size_t i = 0; names[i] != NULL; i++) {
        void *opened = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (opened == NULL) {
            const char *error = dlerror();
            error = error != NULL ? error : "dlopen failed";
            if (!is_there) {
                snprintf(why, sizeof why, "%s", error);
                is_there =
                    strstr(error, "No such file") == NULL || strstr(error, names[i]) != error;
            }
            continue;
        }
        const char *missing = first_missing(opened, symbols, count);
        if (missing == NULL) {
            fill(opened, symbols, count);
            *handle = opened;
            return STATUS_OK;
        }
        dlclose(opened);
        if (!is_there) {
            snprintf(why, sizeof why, "%s has no %s, another version is needed", names[i], missing);
            is_there = true;
        }
    }
    return not_found(names, why);
}

void library_close(void *handle)
{
    if (handle != NULL) {
        dlclose(handle);
    }
}
