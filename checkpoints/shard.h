/* shard: one rank's file of a checkpoint. HDF5 lays out the metadata; the payload goes in by
 * pwrite, hashed on the way.
 *
 * Each slice is a flat dataset under its tensor's name, with attributes dtype, shape (of the whole
 * tensor), first, count.
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

/* Local. Hashes of a file on disk that somebody else wrote: adds it to `manifest`. */
enum status shard_add_file(struct manifest *manifest, const char *path, const char *name)
    __attribute__((warn_unused_result));

/* Local. Reads a file back and compares every block with the manifest. Errors: STATUS_DATA names
 * file and block. */
enum status shard_verify(const struct manifest *manifest, int64_t file, const char *path)
    __attribute__((warn_unused_result));

/* Local. model.h5: the whole tensors as virtual datasets over the shards (relative names), for h5py
 * and h5dump. */
enum status shard_view(const struct manifest *manifest, const char *path)
    __attribute__((warn_unused_result));

#endif
