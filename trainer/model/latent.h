/* latent: the projections of multi-head latent attention (DeepSeek-V2, Liu et al. 2024, equations 9
 * to 19; models.md 2.5). Private to attention.c.
 *
 * Queries may be compressed (q_a, norm, q_b) or not (q_b alone). Keys and values come from one
 * normed latent per token; the rotary part of a key is one vector for all heads.
 */
#ifndef TRAINER_LATENT_H
#define TRAINER_LATENT_H

#include "trainer/model/block.h"

void latent_layout(const struct model *model, struct attention_state *state,
                   const struct attention_state *lender, const struct layout *layout);
void latent_scratch_layout(const struct model *model, struct attention_scratch *scratch,
                           struct arena *arena);

void latent_forward(struct model *model, int64_t block, const struct block_call *call,
                    const struct operand *x);
/* The norms and what is projected up from them, again. */
void latent_recompute(struct model *model, int64_t block, const struct block_call *call);
/* From scratch dq, dkv, dk_rope to dx (overwrites) and the gradients of the projections (add). */
void latent_backward(struct model *model, int64_t block, const struct block_call *call,
                     struct tensor dx, const struct operand *x);

#endif
