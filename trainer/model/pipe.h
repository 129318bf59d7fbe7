/* pipe: the micro-batches of a step through the stages of a pipeline (parallel/pipeline.h), or
 * through the one there is, where passes go side by side.
 *
 * A rank walks its own track of the schedule's table. Every micro-batch between its forward and its
 * backward has a slot of the model (struct slot). Between stages a message travels: forward the
 * stream, backward its gradient, and, where a balance loss is of all layers together (Mixtral's as
 * in transformers), forward how many slots each expert got in the layers so far, backward in all of
 * them. What a micro-batch computes on its way is what one rank computes.
 */
#ifndef TRAINER_PIPE_H
#define TRAINER_PIPE_H

#include "kernels/base/arena.h"
#include "parallel/mail.h"
#include "trainer/model/deferred.h"
#include "trainer/model/stages.h"

struct batch;
struct model;
struct model_losses;
struct model_result;
struct model_scale;

/* A message that came, or was handed over between two parts of the rank, and is not used yet, or,
 * in the outbox, one that is under way. */
struct letter {
    void *data; /* device */
    bool full;
    int32_t part, batch; /* who uses it */
    bool gradient;
    struct mail mail;
};

struct pipe {
    struct pipeline table;         /* of a step of table.shape.batches micro-batches */
    size_t bytes;                  /* of a message: stream, then counts */
    size_t counts;                 /* where the counts begin */
    struct letter *inbox, *outbox; /* owned */
    int64_t inboxes, outboxes;
    int64_t sent;             /* messages begun: the next is outbox[sent % outboxes] */
    struct deferred deferred; /* gradients of weights that wait */
    int64_t latest;           /* slot whose batch is in model->input */
    int64_t ending;           /* slot whose final norm is in model->final_norm */
    int32_t *running; /* [model->slots] owned: the micro-batch in it, until its gradients of weights
                         are made; -1: none */
};

/* Local. The table of the largest step, and model->slots as it wants them; without a pipeline one
 * slot, and nothing else. Errors: STATUS_RESOURCE; STATUS_USAGE: there is no such table. */
enum status pipe_init(struct model *model) __attribute__((warn_unused_result));
void pipe_free(struct model *model); /* accepts a zeroed one */
/* Measures, then hands out (arena twice). */
void pipe_layout(struct model *model, struct arena *arena);

/* A step's micro-batches of this rank. */
struct pipe_step {
    const struct batch *batches;     /* [count] host */
    const struct model_scale *scale; /* [count] */
    int64_t count;
    int64_t sequences, sequence; /* of each: so many of so many tokens */
    struct model_losses *losses; /* [count] device: cleared, then this rank's part */
    double *aux;                 /* [count, moe blocks] device: likewise */
};

/* Collective over the ranks of the pipeline and of the stage. Forward and backward of all;
 * gradients add up; *result is of this rank's blocks. Errors, on all ranks alike: STATUS_RESOURCE,
 * STATUS_USAGE where a step of another size than the last has no table. */
enum status pipe_run(struct model *model, const struct pipe_step *step, struct model_result *result)
    __attribute__((warn_unused_result));
/* Collective likewise. Forward and loss of one micro-batch of model->batch sequences;
 * *model->losses is the last stage's. Ranks go on when their part is done: pipe_settle ends what is
 * under way. */
void pipe_evaluate(struct model *model, const struct batch *batch, int64_t sequence);
void pipe_settle(struct model *model);
/* Local. The rank of the pipeline that has the last stage. */
int pipe_last(const struct model *model);

#endif
