/* aside: what stands where something new goes is kept beside it, under the first free name
 * PATH.old-N.
 */
#ifndef KERNELS_BASE_ASIDE_H
#define KERNELS_BASE_ASIDE_H

#include "kernels/base/io.h"

enum { ASIDE_PATH_BYTES = 4096 };

/* Renames the file or folder `path`; slashes at its end are no part of its name. Nothing there is
 * fine: old[0] is 0 then. Errors: STATUS_IO. */
enum status aside_move(const char *path, char old[ASIDE_PATH_BYTES]) IO_CHECKED;

#endif
