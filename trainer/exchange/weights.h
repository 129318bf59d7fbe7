/* weights: values of parameters out of a checkpoint, as f32, in whatever dtype it holds them.
 *
 * A trained checkpoint has f32 masters beside bf16 weights, or f32 weights alone; an imported one
 * has each tensor as it was published: f32, bf16, f16, or float8 codes with a scale per block of
 * 128 x 128. Memory: a staging block and the scales of one tensor.
 */
#ifndef TRAINER_WEIGHTS_H
#define TRAINER_WEIGHTS_H

#include "checkpoints/checkpoint.h"
#include "checkpoints/manifest.h"
#include "trainer/config/config.h"

enum { WEIGHTS_SCALE_BLOCK = 128 }; /* rows and columns that share a scale of float8 */
#define WEIGHTS_SCALE_SUFFIX "_scale_inv"

struct weights {
    const char *path;                 /* borrowed: of the checkpoint, for messages */
    struct checkpoint_reader *reader; /* owned */
    char scaled[MANIFEST_NAME_BYTES]; /* the tensor whose scales are at hand; "": none */
    float *scales;                    /* owned */
    void *staging;                    /* owned */
    float *wide;                      /* owned: what goes on to a device */
};

/* Local. Errors: those of checkpoint_open. */
enum status weights_open(struct weights *weights, const char *path)
    __attribute__((warn_unused_result));
void weights_close(struct weights *weights); /* accepts a zeroed one */

/* NULL: not there. */
const struct manifest_tensor *weights_find(const struct weights *weights, const char *name);

/* Local. Elements [first, first + count) of the stored tensor `name`. Errors: STATUS_MISMATCH when
 * it is not there; STATUS_DATA when damaged, or of a dtype that is no weight's. */
enum status weights_read(struct weights *weights, const char *name, int64_t first, int64_t count,
                         float *to) __attribute__((warn_unused_result));

/* Local. Into slice->data (f32): master/NAME when the checkpoint has it, else NAME; of the slice's
 * shape, else STATUS_MISMATCH names both. resize_vocab: the embedding and the head may have other
 * numbers of rows; those in common are read, further ones of the slice stay as they are. */
enum status weights_load(struct weights *weights, const struct checkpoint_slice *slice,
                         bool resize_vocab) __attribute__((warn_unused_result));

/* Local. That the checkpoint holds no weights or biases but those of the whole model of `config`:
 * what belongs to them (scales, and all under NAME/: masters, moments, averages) is not looked at.
 * Errors: STATUS_MISMATCH; those of manifest_read. */
enum status weights_check_model(const char *path, const struct config *config)
    __attribute__((warn_unused_result));

/* Scales of a matrix: ceil(rows / 128) x ceil(columns / 128). */
int64_t weights_blocks(int64_t size);

#endif
