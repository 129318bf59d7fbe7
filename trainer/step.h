/* step: one optimizer step over a global batch, and evaluation of a token file. */
#ifndef TRAINER_STEP_H
#define TRAINER_STEP_H

#include "data/feed.h"
#include "trainer/guard.h"
#include "trainer/model/model.h"

struct trace; /* trace.h */

/* Wall time of the parts of a step, milliseconds. */
struct phase_ms {
    double data_wait; /* for the thread that makes batches, or making them */
    double data;      /* else until the batches are there and their labels counted */
    double forward_backward, reduce, optimizer;
    double save; /* held up by a save, between this step and the one before, too (not in step_ms) */
    double
        exchange; /* of forward_backward: this rank's in all-to-alls; NAN: on the device (nccl) */
};

/* Whose own work a slow rank shows in. */
enum step_work { WORK_DATA, WORK_FORWARD_BACKWARD, WORK_REDUCE, WORK_OPTIMIZER, STEP_WORKS };

struct step_result {
    int64_t sequences, tokens; /* of the global batch */
    double loss;               /* mean over counted labels of the global batch, before the update */
    double aux_loss;           /* mean over micro-batches */
    double mtp_loss; /* mean over the modules of multi-token prediction, of the sum over their
                        labels / counted labels of the main model; NAN: there are none */
    double grad_norm, lr;
    double dropped_fraction;
    int64_t extra_rounds;                  /* summed over ranks, layers, micro-batches */
    struct fp8_counters fp8[LINEAR_KINDS]; /* all ranks together; values 0: no FP8. Gradients as
                                              they are quantised: times `unit` */
    double unit;                           /* model.unit */
    int64_t saturated, bad_gradients; /* with run.deterministic layout: elements of gradients that
                                         were too large, or not finite, on all ranks */
    int64_t bad_weights;              /* this rank's tiles of updated weights that are not finite */
    double step_ms;
    struct phase_ms phase_ms;
    double own_ms[STEP_WORKS];  /* of this rank, without what it waited in communication */
    enum guard_verdict verdict; /* not GUARD_UPDATE: nothing was updated */
};

/* Batches of a step on this rank. */
struct stepper {
    struct model *model;             /* borrowed */
    struct guard *guard;             /* borrowed, or NULL: only what is not finite stops */
    struct feed feed;                /* the batches of this rank, the next step's made meanwhile */
    int64_t most_units;              /* micro-batches of the largest global batch */
    int64_t units;                   /* of this step's: U */
    int64_t own;                     /* U / dp: this rank's */
    const struct batch *batches;     /* [own] of this step, in feed */
    struct model_scale *scale;       /* [own of the largest] owned: of the step's units */
    struct model_losses *losses;     /* [own of the largest] owned, device: of this rank's units, */
    double *aux;                     /* [the same, moe blocks] in that memory: balance terms */
    struct model_losses *own_losses; /* owned: the same on the host, both, */
    double *own_sums, *unit_sums;    /* [own, most_units; UNIT_SUMS + moe blocks] owned: of all
                                        stages, of all ranks */
    int64_t *load; /* [moe blocks, E] owned: tokens per expert, of the last step's global batch */
    float *bias;   /* [moe blocks, E] owned: scratch of balance_update_bias */
    double *expert_load; /* [moe blocks] owned: max/mean of the last step */
    int64_t moe_blocks;
    /* NULL, or called in every step before anything that a checkpoint holds changes. */
    void (*hold)(void *context);
    void *hold_context;  /* borrowed */
    struct trace *trace; /* borrowed; NULL: none */
};

/* Local. STATUS_USAGE when global_batch, or a size of its ramp, is not a multiple of micro_batch *
 * ranks, or the pipeline's schedule has no table for it. */
enum status stepper_check(const struct config *config, int64_t ranks)
    __attribute__((warn_unused_result));

/* Local. Errors: those of stepper_check; STATUS_RESOURCE. The mixture stays as it is from
 * the first step on. */
enum status stepper_init(struct stepper *stepper, struct model *model,
                         const struct mixture *mixture) __attribute__((warn_unused_result));
void stepper_free(struct stepper *stepper); /* accepts a zeroed one */

/* Collective. Step `step` (from 1): the global batch at sample position `position` (its size is
 * schedule_batch), forward, backward, update. When the loss or the gradient norm is not finite, or
 * a tile of FP8 held what is not, or guard says so, nothing is updated: STATUS_DIVERGED, or what
 * result->verdict says. In FP8 the objective is
 * multiplied by a power of two, at least the counted labels: gradients of single tokens are then
 * about 1, far above the smallest value that codes tell from 0, and they are divided by it,
 * exactly, where they are used. Errors, agreed: data that cannot be read (mixture_status). */
enum status stepper_step(struct stepper *stepper, int64_t step, int64_t position,
                         struct step_result *result) __attribute__((warn_unused_result));
/* Local, the caller agrees. In FP8: STATUS_DIVERGED when the update of this step made weights that
 * are not finite, which must not be saved. */
enum status stepper_updated(int64_t step, const struct step_result *result)
    __attribute__((warn_unused_result));

/* What long work asks at its start and about every quarter second: STATUS_OK, or it is left with
 * that status. Collective over the world, the same on every rank. */
struct step_ask {
    enum status (*call)(void *context);
    void *context; /* borrowed */
};
/* step_evaluate.c. Collective over the world. Mean cross-entropy over the counted labels of the
 * first `batches` micro-batches of a file (0: all of it), in file order: the same bits for every
 * layout. *labels 0: none counts, and *loss is NAN. ask: NULL, or may end it. Errors, agreed: what
 * `ask` returns; token_store_status; STATUS_RESOURCE. */
enum status step_evaluate(struct model *model, const struct loader *loader, int64_t batches,
                          const struct step_ask *ask, double *loss, int64_t *labels)
    __attribute__((warn_unused_result));

/* Seconds of a monotonic clock. */
double step_clock(void);

#endif
