/* export_h5: the tensors of a checkpoint as one HDF5 file that needs no other: whole, in their
 * shapes, under their names, of the types that FORMAT.md describes.
 */
#ifndef CHECKPOINTS_EXPORT_H5_H
#define CHECKPOINTS_EXPORT_H5_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/base/status.h"

struct export_h5_figures {
    int64_t tensors, bytes; /* bytes of the file */
};

/* Local. Writes `to`, which must not be there yet: beside, synced, renamed. weights: without
 * master/, moment1/, moment2/ and ema/. Every block is verified before use. Errors: STATUS_USAGE
 * when `to` is there, STATUS_IO, STATUS_RESOURCE, those of checkpoint_open and checkpoint_read. */
enum status export_h5(const char *path, const char *to, bool weights,
                      struct export_h5_figures *figures) __attribute__((warn_unused_result));

#endif
