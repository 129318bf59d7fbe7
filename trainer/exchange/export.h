/* export: a checkpoint becomes a Hugging Face folder: published names per expert, config.json in
 * the form that every reader knows.
 *
 * Weights stream from the checkpoint into the files, block by block; the files are shared out over
 * the ranks. The folder appears when all of it is there.
 */
#ifndef TRAINER_EXPORT_H
#define TRAINER_EXPORT_H

#include "parallel/comm.h"

/* KEEP: an import as it came, bit by bit; of a trained checkpoint bf16. FP8: blocks of 128 x 128
 * for the matrices that the FP8 releases have so, bf16 for the rest. Of a run in FP8 they are the
 * codes and scales it computed with, where the matrices that it joins (q, k, v; gate and up) have
 * multiples of 128 rows; of others scale is amax / 448 of the f32 weights. */
enum export_dtype { EXPORT_KEEP, EXPORT_F32, EXPORT_BF16, EXPORT_FP8 };

struct export_options {
    const char *from; /* CKPT_DIR or RUN_DIR: its newest checkpoint that loads */
    const char *to;
    int dtype; /* enum export_dtype */
    bool ema;  /* the averaged weights */
    int64_t shard_bytes;
};

struct export_figures {
    int64_t tensors, shards, bytes;
    double seconds;
};

/* Collective. Errors, agreed: STATUS_USAGE (`to` exists), STATUS_DATA, STATUS_MISMATCH (no averaged
 * weights), STATUS_IO. */
enum status export_run(struct comm *world, const struct export_options *options,
                       struct export_figures *figures) __attribute__((warn_unused_result));

#endif
