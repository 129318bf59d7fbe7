/* straggler: which rank is slow while the others wait for it.
 *
 * In a step all ranks take the same time; the slow one works while the others wait in
 * communication. So every rank keeps how long its own work took (step_result.own_ms), and how much
 * of that its threads were ready to run without a core (kernels/core_wait.h). Every
 * watchdog.straggler_every_steps steps the lower quartiles are gathered, in one small collective:
 * what disturbs fewer than three of four steps disturbs nothing here. Ranks of one pipeline stage
 * are compared, as they do the same work.
 *
 *   slow:     its own work, waits for a core left out, takes straggler_ratio times the median
 *             rank's, also once both are divided by what the tokens that their experts got explain
 *   starved:  it works as fast as the others, but with those waits takes straggler_ratio times as
 *             long as the median rank: something else runs on its cores
 *
 * Either, in two looks in a row, is named, then again at the 4th, 8th, ... With NCCL the host does
 * not see the waits in communication, and nobody is named.
 */
#ifndef TRAINER_STRAGGLER_H
#define TRAINER_STRAGGLER_H

#include "kernels/core_wait.h"
#include "trainer/metrics.h"
#include "trainer/step.h"

enum { STRAGGLER_HOST_BYTES = 64 };

/* Of one rank: lower quartiles over steps, ms a step, and where its tokens went. */
struct straggler_times {
    double own;              /* work, without waits for others and for a core */
    double with;             /* the same and its waits for a core */
    double work[STEP_WORKS]; /* parts of `with` */
    double share;            /* tokens of its experts over the mean rank's */
};

enum straggler_verdict { STRAGGLER_NONE, STRAGGLER_SLOW, STRAGGLER_STARVED };

struct straggler {
    struct comm *world;            /* borrowed */
    const struct stepper *stepper; /* borrowed */
    struct metrics *metrics;       /* borrowed: rank 0 says it there */
    int64_t every;                 /* 0: off */
    double ratio;
    double expert_part; /* of the work of a mean rank */
    struct core_wait cores;
    int64_t *core_ns;                   /* [threads] owned: of `cores`, when the step began; */
    int64_t message_ns;                 /* of that, so far, in communication */
    int64_t tokens, all_tokens;         /* of this rank's experts, of all, since the last look */
    int64_t steps, room;                /* since the last look; kept of them */
    double *sample;                     /* [room, 2 + STEP_WORKS] owned */
    double *sorted;                     /* [room or ranks] owned */
    struct straggler_times *times;      /* [ranks] owned */
    int64_t (*streak)[2];               /* [ranks] owned: looks in a row: slow, starved */
    char (*host)[STRAGGLER_HOST_BYTES]; /* [ranks] owned */
};

/* Collective over the mesh's world. `threads`: of this rank. Errors, agreed: STATUS_RESOURCE. */
enum status straggler_init(struct straggler *straggler, const struct stepper *stepper, int threads,
                           struct metrics *metrics) __attribute__((warn_unused_result));
void straggler_free(struct straggler *straggler); /* accepts a zeroed one */
/* Local: a step begins. */
void straggler_begin(struct straggler *straggler);
/* Collective where a look is due, else local: it has ended. */
void straggler_step(struct straggler *straggler, const struct step_result *result);

/* What rank `rank` of `size` that do the same work is; expert_part of a mean rank's work is its
 * experts'. *usual: the median rank's times, the faster of the middle two; *work: the part in which
 * this one loses most. sorted[size] is scratch. */
enum straggler_verdict straggler_judge(const struct straggler_times *times, int size, int rank,
                                       double ratio, double expert_part, double *sorted,
                                       struct straggler_times *usual, enum step_work *work);

#endif
