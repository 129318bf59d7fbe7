/* h5: the few HDF5 objects that shards and the view share. Private to checkpoints/. */
#ifndef CHECKPOINTS_H5_H
#define CHECKPOINTS_H5_H

#include <hdf5.h>

#include "checkpoints/manifest.h"
#include "kernels/base/h5_image.h"

/* A new file in `image` (zeroed before; kernels/base/h5_image.h), in the form that a killed writer
 * cannot leave half-readable (V110), large objects aligned to 4096 bytes for direct I/O; no time
 * stamps, so the same content is the same bytes. Closed with h5_finish. Errors: STATUS_RESOURCE. */
enum status h5_create(hid_t *file, struct h5_image *image) __attribute__((warn_unused_result));
/* Closes it; `good` false: something failed before. `name` stands in the message. Errors:
 * STATUS_RESOURCE (memory is all that can fail). */
enum status h5_finish(hid_t file, const struct h5_image *image, bool good, const char *name)
    __attribute__((warn_unused_result));

/* Stored type of a dtype; bf16 is a custom 16-bit float (8-bit exponent, 7-bit mantissa), e4m3 the
 * code as uint8. Close with H5Tclose. */
hid_t h5_type(enum dtype dtype);

/* Creation list of a dataset: no fill, space allocated at once, no time stamps. Close with
 * H5Pclose. */
hid_t h5_dataset_list(void);
/* The groups that `name` lies in, where they are missing; without time stamps too. */
void h5_make_groups(hid_t file, const char *name);

void h5_set_ints(hid_t object, const char *name, const int64_t *values, int count);
void h5_set_text(hid_t object, const char *name, const char *value);

#endif
