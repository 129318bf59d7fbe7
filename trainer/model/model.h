/* model: parameters, activations, forward and backward of one micro-batch.
 *
 * Mixtral (Jiang et al. 2024), DeepSeek-V2 (Liu et al. 2024), DeepSeek-V3 (2024): pre-norm blocks
 * of attention and SwiGLU experts; what differs is in struct architecture. Memory is arenas by
 * lifetime, measured and then reserved; a step allocates nothing. N = micro_batch * sequence_length
 * tokens. Of a pipeline a rank has a slice (stages.h): parameters and memory of its own blocks, by
 * their numbers in the model; pipe.h runs it.
 */
#ifndef TRAINER_MODEL_H
#define TRAINER_MODEL_H

#include "data/loader.h"
#include "kernels/base/arena.h"
#include "kernels/device.h"
#include "parallel/context.h"
#include "parallel/mesh.h"
#include "parallel/tensor.h"
#include "parallel/zero.h"
#include "trainer/config/config.h"
#include "trainer/model/attention.h"
#include "trainer/model/balance.h"
#include "trainer/model/context.h"
#include "trainer/model/gathered.h"
#include "trainer/model/gradients.h"
#include "trainer/model/lane.h"
#include "trainer/model/linear.h"
#include "trainer/model/mlp.h"
#include "trainer/model/moe.h"
#include "trainer/model/mtp.h"
#include "trainer/model/offload.h"
#include "trainer/model/params.h"
#include "trainer/model/pipe.h"
#include "trainer/model/probe.h"
#include "trainer/model/reduction.h"
#include "trainer/model/shards.h"
#include "trainer/model/stages.h"
#include "trainer/model/vocab.h"
#include "trainer/muon.h"

/* One flat group of parameters on this rank. */
struct model_group {
    struct zero zero;
    void *weights;            /* [zero.count] act; NULL where gathered.on */
    struct gathered gathered; /* on: where they are instead */
    float *grads;  /* [zero.count]; with sums room for it, of which this rank's share alone is
                      used, from optimizer_decode on; NULL without training, and where shards.on */
    int64_t *sums; /* [zero.count] gradients as integers (gradients.h), else NULL, as grads */
    struct shards shards; /* on: where these add up instead */
    struct reduction reduction;
    float *shard; /* [zero.share] this rank's share of the summed gradients, in f32: a view into
                     grads, or, where shards.on, memory of its own */
    int64_t *shard_sums; /* [zero.share] the same in integers, where shards.on; else NULL */
    float *master; /* [zero.share] this rank's share in f32; with fp32 a view into weights, but
                      where shards.on */
    void *moment1, *moment2; /* [zero.share] model->moments; NULL without training; moment2 NULL
                                where all is Muon's, whose momentum is moment1 */
    float *ema;              /* [zero.share] running average of master; NULL: none */
    float *reduced; /* [zero.share] scratch of the reduction; with sums int64. Where shards.on only
                       Muon's, else NULL */
    float *whole;   /* where Muon's whole matrices form: grads, or, where shards.on, its own */
    bool reducing;  /* between optimizer_reduce_start and optimizer_reduce */
    struct muon_plan muon;
};

/* What forward of one block leaves for its backward. */
struct block_state {
    void *input; /* [N,C] act: residual stream entering the block (N here: block_tokens) */
    void *norm1; /* [N,C] act; in FP8: */
    struct fp8_buffer norm1_codes;
    void *middle, *norm2; /* [N,C] act: residual stream after attention, and its norm; norm2: where
                             a router or bf16 reads it */
    struct fp8_buffer norm2_codes; /* in FP8, where a dense MLP or shared experts read it */
    float *rstd1, *rstd2;          /* [N] */
    struct attention_state attention;
    struct mlp_state mlp; /* of a dense layer, or of the shared experts */
    struct moe_state moe; /* where the block has experts */
};

/* What forward of a part of the blocks leaves of one micro-batch for its backward. */
struct slot {
    struct block_state *blocks; /* [blocks] borrowed from model->states; of other parts zeroed */
    int64_t *chosen;            /* [E] slots of an expert that the batch loss counts (balance.h) */
    int64_t part;
};

/* Sums over the micro-batch just done. */
struct model_losses {
    double loss;  /* of -log p over counted labels */
    double mtp;   /* the same of all modules of multi-token prediction */
    int64_t kept; /* expert slots (of parts, with etp) that were not dropped, summed over layers */
};

struct model_result {
    int64_t slots;        /* of experts, dropped or not, summed over layers */
    int64_t extra_rounds; /* dispatch rounds beyond the first, summed over layers */
};

/* What the arenas are made of: their bytes by kind add up to model_bytes. */
enum model_memory {
    MODEL_WEIGHTS, /* in the form the kernels read, codes of FP8 and the selection bias included */
    MODEL_GRADIENTS, /* and room for their reduction, and for what one op adds */
    MODEL_MASTERS,   /* f32, where they are not the weights */
    MODEL_MOMENTS,   /* and average, and Muon's scratch */
    MODEL_BLOCKS,    /* what forward keeps of each block for backward, backward for gradients of
                        weights that wait */
    MODEL_LENT,      /* the same, where all blocks share it */
    MODEL_EXCHANGE,  /* rows on their way to the experts and back, as bounded by router.dispatch */
    MODEL_SCRATCH,   /* streams, gradients of activations, statistics */
    MODEL_MEMORIES
};

/* Pointers to parameters, gradients, optimizer state, activations and scratch are device memory
 * (kernels/ops.h) throughout; state that is offloaded is the host's (offload.h). */
/* Padded messages are from rank to rank. */
static inline enum nodes_wish model_node_dispatch(const struct config *config)
{
    const int wish = config->parallel.node_dispatch;
    if (config->router.dispatch == CONFIG_PADDED || wish == CONFIG_NODE_DISPATCH_FLAT) {
        return NODES_FLAT;
    }
    return wish == CONFIG_NODE_DISPATCH_AUTO ? NODES_AUTO : NODES_HIERARCHICAL;
}

/* The groups that a config wants. */
static inline struct mesh_shape model_mesh_shape(const struct config *config)
{
    return (struct mesh_shape){.pp = (int)config->parallel.pp,
                               .tp = (int)config->parallel.tp,
                               .cp = (int)config->parallel.cp,
                               .ep = (int)config->parallel.ep,
                               .etp = (int)config->parallel.etp,
                               .node_dispatch = model_node_dispatch(config),
                               .ranks_per_node = (int)config->parallel.ranks_per_node};
}

struct model {
    const struct config *config; /* borrowed */
    const struct mesh *mesh;     /* borrowed */
    struct device *device;       /* borrowed */
    const struct ops *ops;       /* borrowed */
    struct architecture whole;   /* without training: no multi-token prediction */
    struct architecture arch;    /* the same, of what tp divides this rank's part */
    enum dtype act, moments;     /* of weights and activations; of the optimizer's moments */
    bool training;               /* has gradients and optimizer state */
    struct params params;
    struct model_group group[PARAM_GROUPS];
    struct offload offload;
    struct linears linears;
    struct cp cp;  /* sequences divided between ranks, */
    struct tp tp;  /* this rank's part of them, and matrices */
    void *wide[2]; /* [N, tp.width] act, and f32: rows of all tokens (block_gather); NULL: tp has
                      one rank */
    struct gradients gradients;
    double unit;                /* what gradients are counted in: the true ones times this power of
                                   two. 1 but in FP8 (stepper_step) */
    float *muon_scratch;        /* for the largest matrix this rank orthogonalises */
    struct adamw_piece *pieces; /* [params] owned, host: of the step that runs */
    double *norm;               /* [1] */
    struct arena arena_params, arena_grads, arena_optimizer, arena_activations;
    size_t memory[MODEL_MEMORIES]; /* bytes of the arenas */
    int64_t batch, sequence;    /* of the largest micro-batch; of a sequence this rank of cp's, */
    int64_t length;             /* of all its tokens */
    struct slice slice;         /* which blocks this rank has */
    struct pipe pipe;           /* messages to other stages */
    struct lanes lanes;         /* passes side by side */
    struct block_state *states; /* [slots, blocks] owned */
    struct slot *slot;          /* [slots] owned */
    int64_t slots;              /* 1 without a pipeline */
    struct block_state *blocks; /* [blocks] of the slot that runs */
    struct block_state shared;  /* buffers that all blocks share (layout.h) */
    struct mtp_state *mtp;      /* [mtp_depth] owned */
    void *stream, *delta;       /* [N,C] act: end of the stream; output of the last block */
    void *dstream, *dwork, *dnorm; /* [N,C] act */
    void *final_norm;              /* [N,C] act */
    float *final_rstd;             /* [N] */
    float *rope;                   /* [length, rope_dim] */
    float *router_bias;            /* [moe blocks, E] e_score_correction_bias; NULL: none */
    struct balance balance;
    struct attention_scratch attention;
    struct context_scratch context;
    struct mlp_scratch mlp;
    struct mtp_scratch mtp_scratch;
    struct vocab_scratch vocab;
    int64_t *load;      /* [moe blocks, E] tokens per expert, summed over micro-batches since
                           model_zero_grads */
    struct batch input; /* [N] each: the micro-batch that runs; ids: vocab_own_ids */
    int32_t *own;       /* [4N] owned, host: those on their way there */
    struct model_losses *losses; /* [1] of the last model_run, or the unit that runs */
    double *aux;   /* [moe blocks] likewise: weighted balance and z-loss terms of each block */
    float *logits; /* [V] of model_logits */
    struct moe moe;
    struct model_result result; /* of the last model_run or model_forward */
    const struct probe *probe;  /* borrowed; NULL, or told of the tensors of training */
};

/* Local: what ranks must agree on is left to the caller. batch x sequence is the largest
 * micro-batch. Errors: STATUS_RESOURCE; STATUS_USAGE: stages or a schedule that cannot be. */
enum status model_init(struct model *model, const struct config *config, const struct mesh *mesh,
                       struct device *device, int64_t batch, int64_t sequence, bool training)
    __attribute__((warn_unused_result));
void model_free(struct model *model); /* accepts a zeroed one */
/* The same without the arenas: model->memory is what model_init would reserve; nothing can run. The
 * ranks and sizes of mesh->stage, replicas, cp, tp, edp, ep, dp, pp and ends are all that is looked
 * at. */
enum status model_measure(struct model *model, const struct config *config, const struct mesh *mesh,
                          struct device *device, int64_t batch, int64_t sequence, bool training)
    __attribute__((warn_unused_result));

/* Collective. Fresh weights: normal(0, initializer_range) keyed by (seed, parameter name, element),
 * norms 1, moments 0. */
void model_initialize(struct model *model);
/* Collective. Device form of the weights from the f32 masters, gathered over the replicas; codes of
 * those in FP8. */
void model_publish(struct model *model);

/* Local. What a part of the share (offload.h) has of masters goes to where it is weights, or to
 * what is kept of them; nothing where it is there. */
void model_publish_part(struct model *model, enum param_group group,
                        const struct offload_part *part);
/* Collective over the group's replicas. Weights of the group from all ranks' shares; rounded: those
 * of this rank's are there. */
void model_gather(struct model *model, enum param_group group, bool rounded);

/* Those to come are counted in model->unit. renew: micro-batches that go through all blocks follow;
 * experts' gradients, which the first overwrites, are those of the step before until then, where
 * the device gains by it. */
void model_clear_grads(struct model *model, bool renew);
static inline void model_zero_grads(struct model *model)
{
    model_clear_grads(model, false);
}

/* With both times a power of two, gradients are so too (model.unit). */
struct model_scale {
    double loss;         /* 1 / counted labels of the global batch */
    double unit;         /* 1 / micro-batches of the global batch */
    double mtp_weight;   /* of multi-token prediction */
    uint64_t jitter_key; /* router jitter: differs per step and micro-batch */
    bool last;           /* of the step: gradients that are whole may start for other ranks */
};

/* A micro-batch on its way: `count` sequences of `sequence` tokens. */
struct model_unit {
    const struct batch *batch; /* host memory */
    int64_t count, sequence;
    const struct model_scale *scale; /* NULL: no backward follows */
};

/* Collective over ep; of a model that is not a slice. Forward, then loss; with `scale` not NULL
 * also backward, gradients add up. Results in model->result and, on the device, *model->losses and
 * model->aux. */
void model_run(struct model *model, const struct batch *batch, int64_t count, int64_t sequence,
               const struct model_scale *scale);
/* Local. What the last model_run left in model->losses, and the sum of model->aux; waits for it. */
struct model_losses model_read_losses(const struct model *model);
double model_read_aux(const struct model *model);

/* The same stage by stage, for pipe.h. Collective over ep, all but use_slot. What they count is
 * added to model->result, *model->losses and model->aux, which the caller clears.
 *
 * What runs next is of this slot. */
void model_use_slot(struct model *model, int64_t slot);
/* Forward of one part: the first stage reads the batch, others find the stream in the input of
 * their first block, and what was chosen so far in balance.chosen. Behind it the stream is the last
 * block's `middle` plus model->delta, and the last stage has made its final norm. */
void model_part_forward(struct model *model, const struct model_unit *unit,
                        const struct stage *part);
/* Host to device: the unit's batch, where others came since its forward. */
void model_take_unit(struct model *model, const struct model_unit *unit);
/* Of the last stage, behind its forward: losses, those of multi-token prediction too; with a scale
 * model->dstream becomes the gradient of the stream in front of the final norm. */
void model_part_loss(struct model *model, const struct model_unit *unit);
/* model->dstream: gradient of the stream behind the part on entry, before it on return; with what
 * all layers have chosen in balance.chosen. */
void model_part_backward(struct model *model, const struct model_unit *unit,
                         const struct stage *part);
/* The backward of a micro-batch has come through a block, `part`: of the step's last the block's
 * gradients start for other ranks (reduction.h), unless some wait (deferred.h). */
void model_close_gradients(struct model *model, int64_t part, const struct model_scale *scale);
/* Collective over tp. *model->losses, of which every rank of tp has its own tokens', of all. */
void model_sum_losses(struct model *model);

struct block_call;

/* Collective over ep. Forward only, as `call` says (block.h); logits f32 [rows,V] (device) of its
 * tokens from `first` on. */
void model_forward(struct model *model, const struct block_call *call, int64_t first, int64_t rows,
                   float *logits);
/* Collective over ep. Forward only; logits f32 [V] of token `token` of the batch; both are host
 * memory. */
void model_logits(struct model *model, const struct batch *batch, int64_t count, int64_t sequence,
                  int64_t token, float *logits);

/* Factor of lse^2 in the objective, for a block that routes `tokens` tokens. */
float model_z_scale(const struct model *model, int64_t tokens, const struct model_scale *scale);
/* Adds what a block with experts just routed to the result and to model->load. */
void model_count_block(struct model *model, int64_t block, int64_t tokens);

/* Arenas of this device's memory start so. */
struct arena model_arena(const struct model *model);
/* Local. Host memory for the batch on its way to the device: model->own. Errors: STATUS_RESOURCE.
 */
enum status model_own_batch(struct model *model) __attribute__((warn_unused_result));
/* Bytes reserved: of the device; of the host's memory for optimizer state. */
size_t model_bytes(const struct model *model);
size_t model_host_bytes(const struct model *model);

#endif
