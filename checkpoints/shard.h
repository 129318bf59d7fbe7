/* shard: one rank's file of a checkpoint. HDF5 lays out the metadata in memory; metadata and
 * payload go to the disk together, block by block, hashed on the way.
 *
 * Each slice is a flat dataset under its tensor's name (a tensor's second and later ones, which
 * follow the first, under NAME@FIRST), with attributes dtype, shape (of the whole tensor), first,
 * count; of columns also run, stride.
 */
#ifndef CHECKPOINTS_SHARD_H
#define CHECKPOINTS_SHARD_H

#include "checkpoints/checkpoint.h"
#include "checkpoints/manifest.h"

/* Local. Writes and syncs path/name and adds the file and its pieces to `manifest`. Errors:
 * STATUS_IO, STATUS_RESOURCE. */
enum status shard_write(struct manifest *manifest, const char *path, const char *name,
                        const struct checkpoint_slice *slices, int64_t count)
    __attribute__((warn_unused_result));

/* Local. The same of whole tensors in their shapes, without the attributes of slices: a file that
 * stands alone. */
enum status shard_write_whole(struct manifest *manifest, const char *path, const char *name,
                              const struct checkpoint_slice *slices, int64_t count)
    __attribute__((warn_unused_result));

#endif
