/* training_parts: what training.c and training_open.c share: one `train`, while it runs. */
#ifndef TRAINER_TRAINING_PARTS_H
#define TRAINER_TRAINING_PARTS_H

#include "data/tokenizer.h"
#include "trainer/dataset.h"
#include "trainer/deadline.h"
#include "trainer/metrics.h"
#include "trainer/profile.h"
#include "trainer/replicas.h"
#include "trainer/resume.h"
#include "trainer/saving.h"
#include "trainer/sources.h"
#include "trainer/straggler.h"
#include "trainer/trace.h"
#include "trainer/watchdog.h"

enum { TRAINING_PATH_BYTES = 4096 };

struct training {
    struct session *session;
    const struct config *config;
    struct comm *world;
    struct model model;
    struct sources train;
    struct dataset valid;
    struct tokenizer tokenizer;         /* of samples; zeroed without */
    char ids_of[STATE_TOKENIZER_BYTES]; /* the tokenizer that checkpoints name */
    struct stepper stepper;
    struct trace trace;        /* of debug.trace */
    struct metrics metrics;    /* rank 0 */
    struct io_file lock;       /* rank 0 */
    struct watchdog *watchdog; /* owned, or NULL */
    double began;              /* step_clock */
    struct deadline deadline;
    struct saving saving;
    struct progress_state at;
    struct guard guard; /* of at.guard */
    struct replicas replicas;
    struct straggler straggler;
    struct profile profile;
    bool resumed_whole; /* the run goes on from a checkpoint, `from` */
    bool given_up;      /* checkpoints of steps given up are still there */
    char checkpoints[TRAINING_PATH_BYTES];
    char from[TRAINING_PATH_BYTES];  /* the checkpoint it goes on from, or "" */
    char resumed[RESUME_NOTE_BYTES]; /* what changed since the checkpoint */
    double first_loss, last_loss, valid_loss;
    double asked;     /* step_clock: in an evaluation, the last question, or its begin */
    double evaluated; /* s: the last step's evaluation, and what was saved before it */
    bool edge_saved;  /* what is due behind the step was, before its evaluation */
    bool left;        /* the last evaluation was */
};

/* Local. */
static inline bool training_main_rank(const struct training *t)
{
    return t->world->rank == 0;
}

/* Collective. Data, model, weights (of a checkpoint, or new ones), files of the run. `t` has its
 * session, config and world. Errors, agreed: whatever these refuse. */
enum status training_open(struct training *t, bool fresh) __attribute__((warn_unused_result));
void training_close(struct training *t); /* accepts one that is half open */
/* Collective. What a run that is not resumed starts from; keeps what a resumed one has. */
enum status training_start_anew(struct training *t) __attribute__((warn_unused_result));
/* Local. Up to the end of the run. */
int64_t training_tokens_left(const struct training *t);
/* Collective, of a struct training. Before a save, and as often as guard.replicas_every_steps says:
 * STATUS_DIVERGED when copies of weights differ. */
enum status training_compare_replicas(void *training, int64_t step)
    __attribute__((warn_unused_result));

#endif
