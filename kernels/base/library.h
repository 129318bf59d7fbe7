/* library: libraries looked for when the program runs, so that one binary works with or without
 * them (cuBLASLt, cuDNN, NCCL).
 *
 * Function pointers are filled from the program itself if it holds every one of the symbols (a test
 * program may carry a stand-in; needs -rdynamic), else from the first of the names that dlopen
 * finds; dlopen honours the executable's RUNPATH and LD_LIBRARY_PATH.
 */
#ifndef KERNELS_BASE_LIBRARY_H
#define KERNELS_BASE_LIBRARY_H

#include <stddef.h>

#include "kernels/base/status.h"

struct library_symbol {
    const char *name;
    void (**function)(void); /* where its address goes */
};

/* names: file names, best first, NULL-terminated. *handle: of library_close, which the caller owes;
 * NULL where the program itself has the symbols. Error: STATUS_RESOURCE with one line that says
 * which names were tried and why it failed: what the loader said, or which symbol a library lacks,
 * of the first that is there, else of the last name. *handle is NULL then, the functions are as
 * they were. */
enum status library_open(void **handle, const char *const *names,
                         const struct library_symbol *symbols, size_t count)
    __attribute__((warn_unused_result));
void library_close(void *handle); /* accepts NULL */

#endif
