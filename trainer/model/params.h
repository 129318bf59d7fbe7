/* params: one table of parameters drives layout, initialisation, weight decay, sharding and
 * checkpoint names.
 *
 * Of a pipeline's rank: what its stages have (stages.h), under the names they have in the model.
 * Flat groups per rank, by the ranks that hold the same: dense parameters (all ranks of the stage),
 * this rank's experts, or their parts where etp divides them (edp), where tp is more than 1 its
 * part of the matrices that tp divides (replicas; else they are dense), and, where the first and
 * the last stage of a pipeline both read it, its part of the embedding (mesh->ends). A group
 * is one contiguous array of elements; weights, gradients and optimizer state all use the same
 * offsets. DeepSeek-V3's e_score_correction_bias is no parameter here: nothing but counts moves it
 * (model.h). Where tp does not divide the vocabulary, the first ranks have a row of embedding and
 * head more than the last, and all have room for it.
 */
#ifndef TRAINER_PARAMS_H
#define TRAINER_PARAMS_H

#include <stdbool.h>
#include <stdint.h>

#include "trainer/model/stages.h"

enum param_group { PARAM_DENSE, PARAM_EXPERT, PARAM_TENSOR, PARAM_EMBED, PARAM_GROUPS };

struct param {
    char name[96]; /* published Hugging Face name */
    enum param_group group;
    int ndim;
    int64_t shape[2];          /* of the whole parameter */
    int64_t first[2], part[2]; /* this rank's part: its first row and column, rows and columns */
    int64_t count;             /* elements of the part */
    int64_t offset;            /* first element in its group */
    bool decay;                /* weight decay applies */
    bool ones;                 /* starts as 1 (norms); else normal with initializer_range */
    bool muon;                 /* updated by Muon; else AdamW (optimizer_init) */
    bool frozen;               /* not updated at all (optimizer_init) */
};

/* Offsets (elements in their group) of one block's tensors; -1: the block, or the rank, has none.
 */
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
    int groups; /* the first so many are looked at; of these PARAM_TENSOR may be empty */
    enum param_group divided;        /* group of the matrices that tp divides */
    enum param_group embedding;      /* group of the embedding */
    int64_t elements[PARAM_GROUPS];  /* without padding at the end */
    int64_t parts;                   /* of a group that is divided into parts (zero.h), in the order
                                        of the table: the embedding, each block of the main model,
                                        the final norm, the head, each module of prediction */
    int64_t *begin[PARAM_GROUPS];    /* [parts] where each begins, those without elements too; all
                                        together owned */
    struct block_offsets *block;     /* [blocks] owned */
    int64_t embed, final_norm, head; /* offsets; -1: the rank has none */
    int64_t vocab_first, vocab;      /* rows of embedding and head on this rank */
    int64_t expert_stride;           /* elements from one expert to the next */
    int64_t down_offset;             /* of the down projection inside an expert */
    int64_t total, active; /* parameters of the whole model without multi-token prediction,
                              selection biases counted as published; touched per token */
    int64_t mtp;           /* parameters of multi-token prediction */
};

/* Whose parameters. Sizes divide experts, heads and widths. */
struct params_place {
    int ep_rank, ep_size, etp_rank, etp_size, tp_rank, tp_size;
    const struct slice *slice;  /* of the pipeline; NULL: all of the model */
    int64_t unit[PARAM_GROUPS]; /* elements, a multiple of 64, of which each part of the group has a
                                   whole number; 0: the group is one part, begin is of no use */
};

/* Of the whole model: one rank that has all. */
static const struct params_place PARAMS_ALL = {.ep_size = 1, .etp_size = 1, .tp_size = 1};

/* Parameters of a rank. arch: the whole model's. decay_all: norms decay too. Local. Errors:
 * STATUS_RESOURCE. */
enum status params_init(struct params *params, const struct architecture *arch, bool decay_all,
                        const struct params_place *place) __attribute__((warn_unused_result));
void params_free(struct params *params);

/* Elements of a part that are neighbours in the whole parameter, too. */
struct param_run {
    int64_t whole; /* index of the first in the whole, row by row */
    int64_t count;
};

/* The part (params->begin) of a block, of the embedding, the final norm, the head. */
enum { PARAM_PART_EMBED };
static inline int64_t params_part_norm(const struct architecture *arch)
{
    return arch->layers + 1;
}
static inline int64_t params_part_head(const struct architecture *arch)
{
    return arch->layers + 2;
}
static inline int64_t params_part_block(const struct architecture *arch, int64_t block)
{
    return block < arch->layers ? 1 + block : 3 + block;
}

/* The block that a part is; -1: it is none. */
static inline int64_t params_block_of(const struct architecture *arch, int64_t part)
{
    return part == PARAM_PART_EMBED   ? -1
           : part <= arch->layers     ? part - 1
           : part <= arch->layers + 2 ? -1
                                      : part - 3;
}

/* The run that begins at element `from` of the part and ends before `to` at the latest. */
struct param_run param_run(const struct param *param, int64_t from, int64_t to);

/* Name of block `block`'s e_score_correction_bias, float32 [E]. */
void params_bias_name(char *out, size_t bytes, int64_t block);

#endif
