/* params: one table of parameters drives layout, initialisation, weight decay, sharding and
 * checkpoint names.
 *
 * Two flat groups per rank: dense parameters (replicated over dp) and this rank's experts
 * (replicated over edp). A group is one contiguous array of elements; weights, gradients and
 * optimizer state all use the same offsets.
 */
#ifndef TRAINER_PARAMS_H
#define TRAINER_PARAMS_H

#include <stdbool.h>
#include <stdint.h>

#include "trainer/config.h"

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

/* Offsets (elements in their group) of one layer's tensors. */
struct layer_offsets {
    int64_t input_norm, qkv, o_proj, post_norm,
        gate;        /* dense; qkv = q_proj, k_proj, v_proj one after another */
    int64_t experts; /* first local expert: w1, w3 ([2F,C] together), w2 */
};

struct params {
    struct param *table; /* [count] owned, in checkpoint order */
    int64_t count;
    int64_t elements[PARAM_GROUPS];  /* without padding at the end */
    struct layer_offsets *layer;     /* [num_hidden_layers] owned */
    int64_t embed, final_norm, head; /* dense offsets */
    int64_t expert_stride;           /* elements from one expert to the next */
    int64_t down_offset;             /* of w2 inside an expert */
    int64_t total, active;           /* parameters of the whole model; touched per token */
};

/* Parameters of ep rank `ep_rank` of `ep_size`. Local. Errors: STATUS_RESOURCE. */
enum status params_init(struct params *params, const struct config *config, int ep_rank,
                        int ep_size) __attribute__((warn_unused_result));
void params_free(struct params *params);

#endif
