/* moe: one mixture-of-experts layer: router, dispatch, experts, combine, and the way back. */
#ifndef TRAINER_MOE_H
#define TRAINER_MOE_H

#include "kernels/base/arena.h"
#include "kernels/device.h"
#include "parallel/expert.h"
#include "trainer/config.h"

/* What forward leaves for backward; one per layer (or one for all with train.recompute: block). N
 * tokens, K choices, C hidden, F width, S = N*K slots, R = plan.bound received rows. */
struct moe_state {
    struct expert_plan plan;
    int32_t *expert; /* [N,K] chosen experts */
    int32_t *routed; /* [N,K] the same, -1 where capacity dropped the slot */
    float *weight;   /* [N,K] */
    float *prob;     /* [N,E] */
    float *lse;      /* [N] */
    int64_t *count;  /* [E] tokens per expert, before dropping */
    int64_t dropped; /* slots dropped */
    void *input;     /* [R,C] act: received rows */
    void *gate_up;   /* [R,2F] act; shared scratch with recompute experts */
    void *output;    /* [S,C] act: expert outputs of this rank's slots, in send order */
};

/* Buffers that live within one call, shared by all layers. */
struct moe_scratch {
    float *logits;  /* [N,E], and dlogits */
    float *dweight; /* [N,K] */
    int32_t *token; /* [S] token of each sent row */
    void *send;     /* [S,C] act */
    void *rows;     /* [R,C] act */
    void *hidden;   /* [R,F] act */
    void *dhidden;  /* [R,F] act */
    void *buffer;   /* [R+S,C] act: exchange */
};

/* Everything a layer needs that does not change from call to call. */
struct moe {
    struct device *device;       /* borrowed */
    const struct ops *ops;       /* borrowed */
    const struct config *config; /* borrowed */
    enum dtype act;
    int64_t tokens; /* N of a full micro-batch */
    int64_t local_experts;
    int64_t expert_stride, down_offset; /* elements */
    struct moe_scratch scratch;
};

/* Weights or gradients of one layer. */
struct moe_weights {
    struct tensor gate; /* [E,C] */
    char *experts;      /* first local expert */
};

/* Measures, then hands out (arena twice). The router's part is always the layer's own; `lender`
 * (may be NULL) lends its input, output and gate_up, `gate_up` (may be NULL) only its gate_up. */
void moe_state_layout(struct moe_state *state, const struct moe *moe,
                      const struct moe_state *lender, const struct moe_state *gate_up,
                      struct arena *arena);
void moe_scratch_layout(struct moe *moe, int64_t bound, struct arena *arena);

/* y[n,C] = experts(x[n,C]). Collective over ep. training: capacity and jitter apply. */
void moe_forward(struct moe *moe, struct moe_state *state, const struct moe_weights *weights,
                 struct tensor y, struct tensor x, bool training);
/* dx overwrites; gradients add. aux_dprob [E], z_scale: see router_backward. `x` is forward's.
 * Collective over ep. */
void moe_backward(struct moe *moe, struct moe_state *state, const struct moe_weights *weights,
                  const struct moe_weights *grads, struct tensor dx, struct tensor dy,
                  struct tensor x, const float *aux_dprob, float z_scale);

#endif
