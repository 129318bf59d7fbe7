/* checkpoint: named tensors and scalars, saved by all ranks together, crash-proof, verified on
 * load.
 *
 * Knows nothing of models: a rank offers slices of tensors (a flat element range of a named tensor,
 * or columns of it) and one JSON text of scalars. Layout of a checkpoint: FORMAT.md. Publish
 * protocol: shards, fsync, agreement, manifest by rename, folder by rename; a folder without a
 * valid manifest is not a checkpoint.
 */
#ifndef CHECKPOINTS_CHECKPOINT_H
#define CHECKPOINTS_CHECKPOINT_H

#include "kernels/base/tensor.h"
#include "parallel/comm.h"

/* `count` elements from `first` on of the row-major flattened tensor `name`; or, with `run`, in
 * runs of so many elements whose firsts are `stride` apart, `stride` being the tensor's last
 * dimension: columns of a matrix, two runs or more. One behind the other in memory. Of a tensor's
 * slices that a rank saves the first begins first. */
struct checkpoint_slice {
    const char *name; /* borrowed */
    enum dtype dtype; /* F32, BF16, F16 or E4M3 */
    int ndim;
    int64_t shape[4]; /* of the whole tensor */
    int64_t first, count;
    int64_t run, stride; /* 0: all in one */
    void *
        data; /* borrowed: read by save, written by load; their own business with `read`, `write` */
    /* Save only, or NULL: fills `to` with bytes [offset, offset + bytes) of the slice, so that what
     * is saved need not be in memory. Blocks come in rising order, each byte once. */
    enum status (*read)(const struct checkpoint_slice *slice, int64_t offset, void *to,
                        size_t bytes);
    /* Load only, or NULL: puts `bytes` bytes at `to`, a place inside `data`, which then need not be
     * memory of the host. */
    void (*write)(const struct checkpoint_slice *slice, void *to, const void *from, size_t bytes);
    void *context; /* borrowed: of `read` and `write` */
};

struct checkpoint_options {
    int keep_last; /* newest checkpoints kept, >= 1 */
};

/* Collective over comm. Saves into root/SSSSSSSS (step, 8 digits). `state` is JSON (an object) of
 * scalars, rank 0's counts. Every element of every tensor must be offered by exactly one rank
 * (asserted by rank 0 from the slice table: STATUS_INTERNAL). Errors are agreed: on failure all
 * ranks get the same status, the temporary folder is removed, older checkpoints stay. */
enum status checkpoint_save(struct comm *comm, const char *root, int64_t step, const char *state,
                            const struct checkpoint_slice *slices, int64_t slice_count,
                            const struct checkpoint_options *options)
    __attribute__((warn_unused_result));

/* Collective. The same to the folder `place` itself, which must be empty or not exist: a checkpoint
 * beside no others, as import writes (kernels/base/folder.h). */
enum status checkpoint_write(struct comm *comm, const char *place, int64_t step, const char *state,
                             const struct checkpoint_slice *slices, int64_t slice_count)
    __attribute__((warn_unused_result));

/* Collective. Checkpoints under root of steps after `step` are deleted. None is being saved. */
enum status checkpoint_forget(struct comm *comm, const char *root, int64_t step)
    __attribute__((warn_unused_result));
/* Collective. Newest valid checkpoint under root of a step before `before` (INT64_MAX: any; the
 * step of one that failed to load: the one to fall back to): manifest hash, file sizes. *path
 * (owned by caller) and *step, or *path NULL when there is none at all. Older ones are tried in
 * turn; each skipped one is reported by `warn` (rank 0 only). One that another process pruned
 * meanwhile is none. Checkpoints exist but none is valid: STATUS_DATA. */
enum status checkpoint_newest(struct comm *comm, const char *root, int64_t before, char **path,
                              int64_t *step, void (*warn)(void *context, const char *message),
                              void *context) __attribute__((warn_unused_result));

/* Local. The state JSON of a checkpoint; *state owned by caller. */
enum status checkpoint_state(const char *path, char **state) __attribute__((warn_unused_result));

/* Local. Whether the checkpoint has a tensor of this name. */
enum status checkpoint_holds(const char *path, const char *name, bool *holds)
    __attribute__((warn_unused_result));
/* Local. Its dtype; DTYPE_COUNT when it has none of this name. */
enum status checkpoint_dtype(const char *path, const char *name, enum dtype *dtype)
    __attribute__((warn_unused_result));

/* Collective. Fills every slice from wherever its elements lie in the checkpoint (any layout),
 * converting bf16 <-> f32 never: dtype and shape must match, and every tensor be there
 * (STATUS_MISMATCH names the tensor and both shapes: a checkpoint of another model). Blocks are
 * verified before use; a bad block is STATUS_DATA naming file and tensor. */
enum status checkpoint_load(struct comm *comm, const char *path,
                            const struct checkpoint_slice *slices, int64_t slice_count)
    __attribute__((warn_unused_result));

/* A checkpoint read piece by piece. */
struct checkpoint_reader;
struct manifest;

/* Local. Reads the manifest; *reader owned by caller. Errors: those of checkpoint_load. */
enum status checkpoint_open(struct checkpoint_reader **reader, const char *path)
    __attribute__((warn_unused_result));
void checkpoint_close(struct checkpoint_reader *reader); /* accepts NULL */
/* What the checkpoint holds: tensors with dtype and shape (checkpoints/manifest.h). */
const struct manifest *checkpoint_contents(const struct checkpoint_reader *reader);
/* Local. Elements [first, first + count) of a tensor as they are stored. The 4 MiB block read last
 * is kept, and those behind it are read meanwhile, so that reads in a row cost little. Blocks are
 * verified before use: STATUS_DATA; no such tensor: STATUS_MISMATCH. */
enum status checkpoint_read(struct checkpoint_reader *reader, const char *name, int64_t first,
                            int64_t count, void *to) __attribute__((warn_unused_result));

/* Local. Removes what dead runs left half-made (.tmp-*, .trash-*, LATEST.tmp); call under the run
 * directory's lock. */
enum status checkpoint_clean(const char *root) __attribute__((warn_unused_result));

/* Local. Takes the checkpoint of `step` away: out of sight by one rename, then deleted, manifest
 * first. Errors: STATUS_USAGE when there is none. */
enum status checkpoint_remove(const char *root, int64_t step) __attribute__((warn_unused_result));
/* Local. Deletes what saves moved aside (SSSSSSSS.replaced-N), *count folders. */
enum status checkpoint_remove_replaced(const char *root, int64_t *count)
    __attribute__((warn_unused_result));

/* For `ckpt ls`. */
struct checkpoint_entry {
    char *path; /* owned */
    int64_t step, bytes, tensors, ranks;
    bool valid;
    char *why; /* owned, when not valid */
};
/* Local. Newest first; one that goes meanwhile is left out. */
enum status checkpoint_list(const char *root, struct checkpoint_entry **entries, int64_t *count)
    __attribute__((warn_unused_result));
void checkpoint_list_free(struct checkpoint_entry *entries, int64_t count);

#endif
