/* stages: which blocks each stage of a pipeline has: contiguous ones, so that the dearest rank is
 * as cheap as can be; and what a rank has of the model.
 *
 * The first stage has the embedding too, the last one the final norm, the head and the modules of
 * multi-token prediction. These read the embedding as well: where the two stages are on different
 * ranks, both hold it, and it is a group of parameters of its own (params.h), over the ranks of
 * both stages.
 */
#ifndef TRAINER_STAGES_H
#define TRAINER_STAGES_H

#include "parallel/pipeline.h"
#include "trainer/model/architecture.h"

enum { STAGES_MOST = 256, SLICE_PARTS = 64 };

/* Blocks [first, first + blocks) of the model, those of multi-token prediction last. */
struct stage {
    int64_t first, blocks;
    bool embedding, head;
};

/* stage[stages] <- blocks of cost[blocks] > 0, of which `layers` are the main model's, whose head
 * is with the last of them; stages <= blocks and STAGES_MOST. pairs: a rank has
 * stages s and stages - 1 - s, of which there is an even number (DualPipe). Every stage has a
 * block; with pairs the inner ones may have none where blocks are few. */
void stages_divide(struct stage *stage, const double *cost, int64_t blocks, int64_t layers,
                   int64_t stages, bool pairs);
/* stage[stages] <- as parallel.stages says. Errors: STATUS_USAGE: not so many stages, not all
 * blocks. */
enum status stages_listed(struct stage *stage, const struct config_reals *list, int64_t blocks,
                          int64_t layers, int64_t stages) __attribute__((warn_unused_result));

/* The schedule that a value of parallel.schedule (enum config_pipeline) names; auto:
 * zero_bubble, 1f1b where virtual stages interleave, in plan
 * too. On one rank 1f1b, or pairs where parallel.overlap wants them. */
struct pipeline_shape stages_shape(const struct config *config, int pipeline, int64_t ranks,
                                   int64_t batches);
/* stage[pipeline_stages(shape)] of a run: parallel.stages, else by operations, with two stages of a
 * rank (dualpipe_v) those of both together. Local. Errors:
 * STATUS_USAGE: more stages than layers, or a list that trains not; STATUS_RESOURCE. */
enum status stages_of(struct stage *stage, const struct config *config,
                      const struct architecture *arch, const struct pipeline_shape *shape)
    __attribute__((warn_unused_result));

/* Local. Whether a run of this config has stages, before any model is made. Errors: stages_of's. */
enum status stages_check(const struct config *config) __attribute__((warn_unused_result));

/* What a rank of the pipeline has. */
struct slice {
    struct pipeline_shape shape;    /* of the largest step */
    int64_t rank;                   /* of the pipeline */
    struct stage part[SLICE_PARTS]; /* [shape.parts] */
    bool embeds, heads;             /* one of them is the first, the last stage */
    bool shared; /* the embedding is read on two ranks of the pipeline (the same answer on all) */
};

/* Local. Errors: those of stages_of. */
enum status slice_init(struct slice *slice, const struct config *config,
                       const struct architecture *arch, const struct pipeline_shape *shape,
                       int64_t rank) __attribute__((warn_unused_result));
bool slice_has(const struct slice *slice, int64_t block);

static inline bool slice_whole(const struct slice *slice)
{
    return slice->shape.ranks == 1;
}

/* Whether micro-batches of a step go by the schedule's table (pipe.h), else one behind the other.
 */
static inline bool slice_scheduled(const struct slice *slice)
{
    return !slice_whole(slice) || slice->shape.schedule == PIPELINE_PAIRS;
}

#endif
