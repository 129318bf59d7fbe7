/* moe: one mixture-of-experts layer: router, dispatch, experts, combine, and the way back. */
#ifndef TRAINER_MOE_H
#define TRAINER_MOE_H

#include "kernels/device.h"
#include "parallel/expert.h"
#include "trainer/model/architecture.h"
#include "trainer/model/capacity.h"
#include "trainer/model/mlp.h"

/* What forward leaves for backward, one per block with experts. N tokens in sequences (rows of
 * statistics), K choices, C hidden, F width, S = N*K slots (of parts of experts where etp
 * divides them: N*K*etp), R = moe->bound received rows. With
 * padded dispatch rows past those that are there are undefined, and nothing reads them. */
struct moe_state {
    struct expert_plan plan;
    struct expert_route route; /* of the rows under way to their experts */
    int32_t *expert;           /* [N,K] chosen experts */
    int32_t *routed; /* [N,K] the same, -1 where capacity dropped the slot; NULL: none can */
    float *weight;   /* [N,K] */
    int32_t
        *spread; /* [S] choices of parts of experts, where etp divides them (ops.expert_spread), */
    float *spread_weight;        /* [S] and their weights; else NULL */
    float *score;                /* [N,E] */
    float *logits;               /* [N,E] */
    float *lse;                  /* [N] of the logits; NULL where nothing asks for it */
    struct router_counts counts; /* of the sequences of this micro-batch, before dropping */
    int64_t row_tokens;          /* tokens of a sequence of the last call */
    void *input;                 /* [R,C] act: received rows; in FP8: */
    struct fp8_buffer input_codes;
    struct mlp_state mlp; /* of R rows */
    void *output;         /* [S,C] act: expert outputs of this rank's slots, in send order */
};

/* Buffers that live within one call, shared by all blocks. */
struct moe_scratch {
    float *dlogits;         /* [N,E] */
    float *dweight;         /* [N,K] */
    float *dspread;         /* [S] where etp divides experts; else NULL */
    float *carried;         /* [S + 2R] where tokens may be relayed (relay.h): weights that leave,
                               that arrive, and in the order of rows; else NULL */
    void *send;             /* [S,C] act */
    void *rows;             /* [R,C] act */
    void *buffer;           /* [R+M,C] act: exchange */
    struct mlp_scratch mlp; /* of R rows */
    /* gradients of outputs in send order, in FP8: as codes, where that is expert order (ep 1); else
     * packed to travel, [S, fp8_packed_bytes(C)] */
    struct fp8_buffer send_codes;
    uint8_t *packed;
};

/* Everything a layer needs that does not change from call to call. */
struct moe {
    struct device *device;           /* borrowed */
    const struct ops *ops;           /* borrowed */
    const struct config *config;     /* borrowed */
    const struct architecture *arch; /* borrowed */
    struct linears *linears;         /* borrowed */
    enum dtype act;
    int64_t tokens;        /* N of a full micro-batch */
    int64_t sequences;     /* of a full micro-batch */
    int64_t local_experts; /* this rank has, or has a part of */
    int64_t slices;        /* parts of an expert: etp */
    int64_t choices;       /* K * slices */
    int64_t bound;         /* R */
    int64_t sending;       /* M: rows that leave this rank at most; exact: S, or R */
    bool apart;            /* ep's ranks stand on machines that are told apart */
    struct moe_scratch scratch;
    struct capacity capacity;
};

/* Weights of one layer, and where their gradients add up. */
struct moe_weights {
    struct tensor gate, dgate;      /* [E,C] */
    const float *bias;              /* [E] added for the choice of experts, or NULL; no gradient */
    const struct linear *up, *down; /* of this rank's experts */
};

/* Measures, then hands out (arena twice). */
void moe_state_layout(struct moe_state *state, const struct moe *moe,
                      const struct moe_state *lender, const struct layout *layout);
/* lender: of another lane (lane.h), laid out already: only what a pass holds across a stop is its
 * own then; NULL: the first. */
void moe_scratch_layout(struct moe *moe, const struct moe *lender, struct arena *arena);

/* Sequences of `sequence` tokens: statistics are of each. */
struct router_shape moe_router_shape(const struct moe *moe, int64_t tokens, int64_t sequence);

/* Whether a forward waits for the counts of tokens, as exact dispatch does where ranks exchange
 * rows or slots may be dropped; or for a wire that needs the host. */
bool moe_waits(const struct moe *moe, const struct moe_state *state, bool training);
/* Sets what the host knows of a forward of `tokens` tokens that does not wait, as that does: for
 * one that a device repeats by itself. */
void moe_expect(const struct moe *moe, struct moe_state *state, int64_t tokens, int64_t sequence);

/* Both passes in two halves: while rows travel between ranks, the device has time for what the
 * caller puts between start and finish (the shared experts); that may not use moe->scratch.
 *
 * y[n,C] = experts(x[n,C]). x: sequences of `sequence` tokens, which all ranks together have
 * `length` of. Collective over ep; training: capacity applies, over tp and cp too. */
void moe_forward_start(struct moe *moe, struct moe_state *state, const struct moe_weights *weights,
                       struct tensor x, int64_t sequence, int64_t length, bool training);
void moe_forward_finish(struct moe *moe, struct moe_state *state, const struct moe_weights *weights,
                        struct tensor y, struct tensor x, bool training);
/* dx overwrites; gradients add. aux [sequences, E], z_scale: see router_backward. `x` is forward's,
 * dy stays as it is until finish. Collective over ep. */
void moe_backward_start(struct moe *moe, struct moe_state *state, const struct moe_weights *weights,
                        struct tensor dy);
void moe_backward_finish(struct moe *moe, struct moe_state *state,
                         const struct moe_weights *weights, struct tensor dx, struct tensor x,
                         const float *aux, float z_scale);

#endif
