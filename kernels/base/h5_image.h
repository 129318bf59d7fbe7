/* h5_image: an HDF5 file in memory, but for the bytes that nobody wrote.
 *
 * HDF5 lays a file out here and never touches the disk: what it writes is kept in pages, what it
 * only reserves (the payload of datasets) costs nothing. The caller then writes the file through
 * io, metadata and payload block by block.
 */
#ifndef KERNELS_BASE_H5_IMAGE_H
#define KERNELS_BASE_H5_IMAGE_H

#include <hdf5.h>

#include "kernels/base/status.h"

struct h5_image_block;

struct h5_image {
    struct h5_image_block **block; /* [blocks] owned, each owned or NULL: 4 MiB of the file each */
    int64_t blocks, bytes;         /* bytes of the file, all that HDF5 reserved */
    bool failed;                   /* out of memory */
};

/* Makes files created with `access` (a file access list) go to `image`, which is zeroed before and
 * has to live until they are closed. Errors: STATUS_INTERNAL. */
enum status h5_image_access(hid_t access, struct h5_image *image)
    __attribute__((warn_unused_result));
/* Copies bytes [begin, begin + bytes); zeros where nothing was written. */
void h5_image_read(const struct h5_image *image, int64_t begin, void *to, size_t bytes);
void h5_image_free(struct h5_image *image); /* accepts a zeroed one; may be called twice */

#endif
