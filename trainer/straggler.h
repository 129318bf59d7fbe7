/* straggler: which rank is slow while the others wait for it.
 *
 * In a step all ranks take the same time; the slow one works while the others wait in
 * communication. So every rank keeps how long its own work took, without those waits
 * (step_result.own_ms), and every watchdog.straggler_every_steps steps the medians of that time are
 * gathered, in one small collective. A rank whose own work takes straggler_ratio times the median
 * rank's in two looks in a row is named, then again at the 4th, 8th, ... Its cause may be the
 * machine, or experts that more tokens go to. With NCCL the host does not see the waits, and nobody
 * is named.
 */
#ifndef TRAINER_STRAGGLER_H
#define TRAINER_STRAGGLER_H

#include "trainer/metrics.h"
#include "trainer/step.h"

enum { STRAGGLER_HOST_BYTES = 64 };

/* Medians of one rank, ms a step: of its own work in all, and of its parts. */
struct straggler_times {
    double all, work[STEP_WORKS];
};

struct straggler {
    struct comm *world;      /* borrowed */
    struct metrics *metrics; /* borrowed: rank 0 says it there */
    int64_t every;           /* 0: off */
    double ratio;
    int64_t steps, room;                /* since the last look; kept of them */
    double *sample;                     /* [room, 1 + STEP_WORKS] owned */
    double *sorted;                     /* [room] owned */
    struct straggler_times *times;      /* [ranks] owned */
    int64_t *streak;                    /* [ranks] owned: looks in a row that found it slow */
    char (*host)[STRAGGLER_HOST_BYTES]; /* [ranks] owned */
};

/* Collective over the mesh's world. Errors, agreed: STATUS_RESOURCE. */
enum status straggler_init(struct straggler *straggler, const struct mesh *mesh,
                           const struct config *config, struct metrics *metrics)
    __attribute__((warn_unused_result));
void straggler_free(struct straggler *straggler); /* accepts a zeroed one */
/* Collective where a look is due, else local. */
void straggler_step(struct straggler *straggler, const struct step_result *result);

/* Whether rank `rank` of `size` is slow; *work: the part in which it loses most; *usual: the median
 * rank's times, the faster of the middle two. sorted[size] is scratch. */
bool straggler_slow(const struct straggler_times *times, int size, int rank, double ratio,
                    double *sorted, struct straggler_times *usual, enum step_work *work);

#endif
