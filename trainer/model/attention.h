/* attention: grouped-query attention (Mixtral) and multi-head latent attention (DeepSeek-V2, Liu et
 * al. 2024, section 2.1), from the norm before it to the output projection, both ways.
 */
#ifndef TRAINER_ATTENTION_H
#define TRAINER_ATTENTION_H

#include "kernels/base/tensor.h"
#include "trainer/model/layout.h"
#include "trainer/model/linear.h"

struct model;
struct block_call;

/* What forward of one block leaves for its backward. N tokens. */
struct attention_state {
    void *qkv; /* grouped queries: [N, (H+2G)D] act */
    /* latent: queries [n,q_rank] before and after their norm, [N, H*qk_dim]; in FP8 the normed ones
     * are codes */
    void *q_a, *q_c, *q;
    struct fp8_buffer q_c_codes;
    /* the latent [N,kv_rank] before and after its norm, its keys and values [N, H*(nope+v)], the
     * rotary key all heads share [N,rope_dim]; kv NULL where cp divides sequences (context.h) */
    void *c_a, *c, *kv, *k_rope;
    struct fp8_buffer c_codes; /* in FP8 instead of c, which only a cache needs then (scratch) */
    float *rstd_q, *rstd_c;    /* [N] */
    void *attended;            /* [N, H*v_dim] act; in FP8 scratch, and for backward */
    uint8_t *attended_codes;   /* [N, fp8_e5m6_bytes(H*v_dim)], from which both the backward of
                                  attention and o_proj's weight gradient read it */
    float *lse;                /* [B,H,T] */
};

/* Gradients of one block at a time, shared by all. */
struct attention_scratch {
    void *dqkv;                    /* [N, (H+2G)D] */
    void *dq, *dkv, *dk_rope;      /* as q, kv, k_rope */
    void *dq_c, *dq_a, *dc, *dc_a; /* as q_c, q_a, c, c_a */
    void *dattended;               /* [N, H*v_dim] */
    void *attended, *c;            /* of blocks in FP8: struct attention_state */
};

/* After attention_scratch_layout. */
void attention_layout(const struct model *model, struct attention_state *state,
                      const struct attention_state *lender, const struct layout *layout);
void attention_scratch_layout(const struct model *model, struct attention_scratch *scratch,
                              struct arena *arena);

/* y [n,C] from x [n,C], the normed stream: attention and its output's projection. With tensor
 * parallelism x and y are this rank's tokens, heads its part of them; the states of latents (q_a,
 * q_c, c_a, c) are of its tokens, all others of all. */
void attention_forward(struct model *model, int64_t block, const struct block_call *call,
                       struct tensor y, const struct operand *x);
/* Makes the MEMORY_NORM buffers again from the others. */
void attention_recompute(struct model *model, int64_t block, const struct block_call *call);
/* dx [n,C] overwrites, gradients of the projections add. */
void attention_backward(struct model *model, int64_t block, const struct block_call *call,
                        struct tensor dx, struct tensor dy, const struct operand *x);

#endif
