/* manifest: what a checkpoint holds and where, as manifest.json. FORMAT.md describes the text.
 *
 * The last thing written and the only truth: files that it does not name do not exist for us, and
 * no byte of a file is used before the hash of its block (BLOCK bytes) agrees.
 */
#ifndef CHECKPOINTS_MANIFEST_H
#define CHECKPOINTS_MANIFEST_H

#include "kernels/base/status.h"
#include "kernels/base/tensor.h"

enum { MANIFEST_VERSION = 2, MANIFEST_NAME_BYTES = 128 };
#define MANIFEST_BLOCK_BYTES ((int64_t)4 << 20)

struct manifest_file {
    char name[MANIFEST_NAME_BYTES]; /* in the checkpoint's folder */
    int64_t bytes;
    uint64_t *block; /* [blocks] owned: XXH3-64 of each block; the last one may be short */
};

/* `count` elements of a tensor from `first` on, one behind the other at byte `offset` of a file:
 * all in one (run 0), or in runs of `run` elements whose firsts are `stride` apart: columns of a
 * matrix (checkpoints/boxes.h), from version 2 on. */
struct manifest_piece {
    int64_t file; /* index in files */
    int64_t first, count, offset;
    int64_t run, stride;
};

struct manifest_tensor {
    char name[MANIFEST_NAME_BYTES];
    enum dtype dtype;
    int ndim;
    int64_t shape[4];
    struct manifest_piece *piece; /* [pieces] owned, by rising `first`; each element is in one */
    int64_t pieces;
    bool hashed;   /* `hash` is known: checkpoints of the first days have none */
    uint64_t hash; /* of its elements, however divided: checkpoints/tensor_hash.h */
};

struct manifest {
    int64_t step, ranks;
    struct manifest_file *file; /* [files] owned */
    int64_t files;
    struct manifest_tensor *tensor; /* [tensors] owned, sorted by name */
    int64_t tensors;
};

void manifest_free(struct manifest *manifest); /* accepts a zeroed one */
int64_t manifest_blocks(int64_t bytes);        /* blocks of a file */

/* Adds a file (hashes copied). Errors: STATUS_RESOURCE. */
enum status manifest_add_file(struct manifest *manifest, const char *name, int64_t bytes,
                              const uint64_t *block) __attribute__((warn_unused_result));
/* Adds a piece, and its tensor when it is the first. Errors: STATUS_INTERNAL when dtype or shape
 * contradict the pieces before. */
enum status manifest_add_piece(struct manifest *manifest, const struct manifest_tensor *like,
                               struct manifest_piece piece) __attribute__((warn_unused_result));
/* Adds to the hash of the tensor that the last piece belongs to. */
void manifest_add_hash(struct manifest *manifest, uint64_t hash);
/* Appends all of `part` (one rank's), its file indices shifted. */
enum status manifest_merge(struct manifest *manifest, const struct manifest *part)
    __attribute__((warn_unused_result));
/* Sorts tensors and pieces; every element of every tensor must be there once (STATUS_INTERNAL names
 * the tensor). */
enum status manifest_seal(struct manifest *manifest) __attribute__((warn_unused_result));

/* JSON, ending with its own hash, of the lowest version that can say it; owned by caller, NULL: out
 * of memory. */
char *manifest_print(const struct manifest *manifest);
/* Checks the hash, then every field. `where` stands in messages. Errors: STATUS_DATA,
 * STATUS_RESOURCE. */
enum status manifest_parse(struct manifest *manifest, const char *where, const char *text)
    __attribute__((warn_unused_result));
/* The same without asking that every tensor be whole: one rank's part. */
enum status manifest_parse_part(struct manifest *manifest, const char *text)
    __attribute__((warn_unused_result));
/* manifest.json of the checkpoint in folder `path`. */
enum status manifest_read(struct manifest *manifest, const char *path)
    __attribute__((warn_unused_result));

const struct manifest_tensor *manifest_find(const struct manifest *manifest,
                                            const char *name); /* NULL: not there */
int64_t manifest_elements(const struct manifest_tensor *tensor);
/* The name of a piece's dataset in its file: the first piece of a tensor there has the tensor's,
 * others NAME@FIRST. */
enum { MANIFEST_DATASET_BYTES = MANIFEST_NAME_BYTES + 32 };
void manifest_dataset(char out[MANIFEST_DATASET_BYTES], const char *tensor, int64_t first,
                      bool is_first);

#endif
