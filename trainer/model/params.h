/* params: one table of parameters drives layout, initialisation, weight decay, sharding and
 * checkpoint names.
 *
 * Two flat groups per rank: dense parameters (replicated over dp) and this rank's experts
 * (replicated over edp). A group is one contiguous array of elements; weights, gradients and
 * optimizer state all use the same offsets. DeepSeek-V3's e_score_correction_bias is no parameter
 * here: nothing but counts moves it (model.h).
 */
#ifndef TRAINER_PARAMS_H
#define TRAINER_PARAMS_H

#include <stdbool.h>
#include <stdint.h>

#include "trainer/model/architecture.h"

enum param_group { PARAM_DENSE, PARAM_EXPERT, PARAM_GROUPS };

struct param {
    char name[96]; /* published Hugging Face name */
    enum param_group group;
    int ndim;
    int64_t shape[2];
    int64_t count;  /* elements */
    int64_t offset; /* first element in its group */
    bool decay;     /* weight decay applies */
    bool ones;      /* starts as 1 (norms); else normal with initializer_range */
    bool muon;      /* updated by Muon; else AdamW (optimizer_init) */
    bool frozen;    /* not updated at all (optimizer_init) */
};

/* Offsets (elements in their group) of one block's tensors; -1: the block has none. */
struct block_offsets {
    int64_t input_norm, post_norm, o_proj;
    int64_t qkv;                   /* grouped queries: q_proj, k_proj, v_proj one after another */
    int64_t q_a, q_a_norm, q_b;    /* latent; not compressed: q_b is q_proj [H*qk_dim, C] */
    int64_t kv_a, kv_a_norm, kv_b; /* kv_a: [kv_rank, C], then the rotary key [rope_dim, C] */
    int64_t gate_up, down;         /* dense layer or shared experts: gate and up together [2F,C] */
    int64_t gate;                  /* router [E,C] */
    int64_t experts;               /* first local expert: gate, up ([2F,C] together), down */
    int64_t enorm, hnorm, eh_proj, head_norm; /* multi-token prediction */
};

struct params {
    struct param *table; /* [count] owned, in checkpoint order */
    int64_t count;
    int64_t elements[PARAM_GROUPS];  /* without padding at the end */
    struct block_offsets *block;     /* [blocks] owned */
    int64_t embed, final_norm, head; /* dense offsets */
    int64_t expert_stride;           /* elements from one expert to the next */
    int64_t down_offset;             /* of the down projection inside an expert */
    int64_t total, active; /* parameters of the whole model without multi-token prediction,
                              selection biases counted as published; touched per token */
    int64_t mtp;           /* parameters of multi-token prediction */
};

/* Parameters of ep rank `ep_rank` of `ep_size`. decay_all: norms decay too. Local. Errors:
 * STATUS_RESOURCE. */
enum status params_init(struct params *params, const struct architecture *arch, bool decay_all,
                        int ep_rank, int ep_size) __attribute__((warn_unused_result));
void params_free(struct params *params);

/* Name of block `block`'s e_score_correction_bias, float32 [E]. */
void params_bias_name(char *out, size_t bytes, int64_t block);

#endif
