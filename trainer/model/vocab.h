/* vocab: the embedding and the head with its loss, divided over the ranks of tp by rows, that is
 * tokens of the vocabulary (Shoeybi et al. 2019, section 3, without their sum over ranks of
 * logits).
 *
 * Rank t has rows params.vocab_first and on, params.vocab of them: as even as can be, where tp does
 * not divide the vocabulary the first ranks one more than the last.
 *
 * Embedding: a rank looks up its rows for the tokens of all ranks, zeros elsewhere; of every token
 * one rank's is not zero, so that the sum, of which each rank gets its own tokens', is exact in any
 * dtype.
 *
 * Loss: the normed stream of all tokens is gathered; a piece of tokens at a time each rank makes
 * the logits of its columns and three numbers a token of them (ops.h: loss_stats), which are
 * gathered and merged by every rank in the same order; then the gradients of its columns, from
 * logits that are still there (docs/parallelism.md says why). Parts of dx are summed over the
 * ranks, rounded once.
 *
 * With one rank the plain ops, nothing else.
 */
#ifndef TRAINER_VOCAB_H
#define TRAINER_VOCAB_H

#include <stdbool.h>

#include "kernels/base/arena.h"
#include "kernels/base/tensor.h"

struct block_call;
struct model;

/* Of the loss with several ranks, on a rank that has the head; else nothing. */
struct vocab_scratch {
    int64_t rows;     /* tokens of a piece, at most */
    float *logits;    /* [rows, V / tp] */
    void *narrow;     /* [rows, V / tp] bf16 gradients of logits; NULL: f32, in their place */
    double *stats;    /* [rows, 3] of this rank */
    double *gathered; /* [tp, rows, 3] */
};

/* Measures, then hands out (arena twice). */
void vocab_layout(struct model *model, struct arena *arena);
/* The same for `tokens` tokens on each of `ranks` ranks; narrow: gradients are bf16. */
void vocab_scratch_layout(struct vocab_scratch *scratch, int64_t tokens, int64_t vocab,
                          int64_t ranks, bool narrow, struct arena *arena);

/* Host memory: ids of all tokens become rows of this rank's embedding, -1: another rank's. */
void vocab_own_ids(const struct model *model, int32_t *ids, int64_t count);

/* y [block_tokens, C] act = the embedding of call->batch->ids, which vocab_own_ids made, of all
 * tokens of the call. Collective over tp; uses wide[0]. */
void vocab_embed(const struct model *model, const struct block_call *call, struct tensor y);
/* The gradient of the embedding adds dy [block_tokens, C]. Collective over tp; uses wide[0]. */
void vocab_embed_backward(const struct model *model, const struct block_call *call,
                          struct tensor dy);

/* *loss (device) adds the sum over this rank's share of tokens: all of them on the first rank of
 * tp, none on others. x [block_tokens, C]: the normed stream. dx.data not NULL: it becomes the
 * gradient of x, the head's adds; loss_scale as in ops.h: cross_entropy. Collective over tp; uses
 * both wide. */
void vocab_loss(const struct model *model, const struct block_call *call, double *loss,
                struct tensor dx, struct tensor x, float loss_scale);

#endif
