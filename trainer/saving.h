/* saving: the checkpoints of a run: when one is due, beside the training or not, what becomes of a
 * save that fails, what saves cost.
 *
 * Due at a step edge: every checkpoint.every_steps steps, every_minutes minutes after the end of
 * the last save, or, with mtbf_hours M, so long after it as costs least on average: sqrt(2 C M)
 * (Young 1974), C the mean time that a save has held the training up, in seconds, or made it slower
 * while it was written; never shorter than a save takes. The first one is then after 10 steps.
 *
 * checkpoint.async: the state is copied while the next step computes and written by one thread per
 * rank (checkpoints/background.h). A second save waits for the first. The last one of a run, at its
 * end or on a signal, is written straight from the model: there is nothing to train meanwhile.
 * A save that fails is warned of when that is known, and training goes on; three in a row, and the
 * last, end it. What `check` refuses is not saved, and ends the run.
 */
#ifndef TRAINER_SAVING_H
#define TRAINER_SAVING_H

#include "checkpoints/background.h"
#include "trainer/deadline.h"
#include "trainer/metrics.h"
#include "trainer/state.h"
#include "trainer/watchdog.h"

struct saving {
    const struct model *model; /* borrowed */
    const struct config *config;
    struct comm *world;
    struct metrics *metrics;   /* borrowed: rank 0 says what it has to say there */
    struct watchdog *watchdog; /* borrowed, or NULL: is told of waits and of saves */
    struct deadline *deadline; /* borrowed, or NULL: is told what a save takes */
    /* NULL, or asked before every save whether the state may be saved; collective, agreed. */
    enum status (*check)(void *context, int64_t step);
    void *check_context;                   /* borrowed */
    const char *root;                      /* borrowed: the folder of checkpoints */
    char tokenizer[STATE_TOKENIZER_BYTES]; /* of the data */
    struct state_slices slices;            /* these two: of saves beside the training; */
    struct background background;          /* else empty */
    bool async;                            /* they are there */
    int64_t saved_step;                    /* of the last checkpoint known good, -1: none */
    int64_t step;                          /* of the save under way, or of the last one tried */
    int failures;                          /* in a row */
    double ended, began;                   /* clock: of the last save, of the save under way */
    double held_up;                        /* s, since saving_held_up was asked */
    double took; /* s: the save that ended, from its begin or, beside training, while it worked */
    double cost, costs;  /* s: of the save under way; of all that were good */
    int64_t saves;       /* good ones */
    double interval;     /* s, of mtbf_hours; 0: not known yet */
    double step_seconds; /* of steps with no save beside them, their mean */
    int64_t steps;       /* that it is of, and one */
};

/* Local. `at`: where the run starts; saved: that is a checkpoint known good. Memory for copies is
 * taken if there will be saves beside the training. Errors: STATUS_RESOURCE. */
enum status saving_init(struct saving *saving, const struct model *model, struct metrics *metrics,
                        const char *root, const char *tokenizer, const struct progress_state *at,
                        bool saved) __attribute__((warn_unused_result));
/* Collective. Waits for the save under way, warns if it failed; keeps status_message(). Accepts a
 * zeroed one. */
void saving_close(struct saving *saving);

/* Local. Of a struct saving: what steps call before the state changes (struct stepper). */
void saving_hold(void *saving);
/* Collective, after every step: sees to the save under way and starts one that is due.
 * step_seconds: what the step took. Errors, the same on every rank: three saves in a row failed. */
enum status saving_edge(struct saving *saving, const struct progress_state *at, double step_seconds)
    __attribute__((warn_unused_result));
/* Collective. At return the checkpoint of `at` is there; else an error, the same on every rank. */
enum status saving_last(struct saving *saving, const struct progress_state *at)
    __attribute__((warn_unused_result));

/* Collective. Sees to the save under way, between step edges that lie far apart. Errors, agreed:
 * three saves in a row failed. */
enum status saving_look(struct saving *saving) __attribute__((warn_unused_result));
/* Collective. The end of the save under way, waited for; a failure is warned of. Errors, agreed:
 * three saves in a row failed. */
enum status saving_settle(struct saving *saving) __attribute__((warn_unused_result));
/* Local. The run went back to a step whose checkpoint is good, or to its start: neither is saved.
 */
void saving_went_back(struct saving *saving, int64_t step);

/* Local. Seconds that saves have held the training up at step edges since this was last asked. */
double saving_held_up(struct saving *saving);
/* Local. Bytes of host memory for the copy. */
size_t saving_bytes(const struct saving *saving);
/* The same of a run of this model, which may be one that is only measured. */
struct saving_size {
    size_t bytes;
    int64_t tensors; /* that this rank has a part of */
    bool beside;     /* a run of so many steps comes to use it */
};
/* Local. Errors: STATUS_RESOURCE. */
enum status saving_measure(struct saving_size *size, const struct model *model)
    __attribute__((warn_unused_result));

#endif
