/* view: model.h5, the whole tensors of a checkpoint as virtual datasets over its shards (relative
 * names), for h5py and h5dump. Nothing here is read back by this program: HDF5 shows zeros where a
 * shard is missing. Private to checkpoints/.
 */
#ifndef CHECKPOINTS_VIEW_H
#define CHECKPOINTS_VIEW_H

#include "checkpoints/manifest.h"

/* Local. Writes and syncs path/model.h5 of the sealed manifest and adds the file to it. Errors:
 * STATUS_IO, STATUS_RESOURCE. */
enum status view_write(struct manifest *manifest, const char *path)
    __attribute__((warn_unused_result));

#endif
