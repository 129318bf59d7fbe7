/* deadline: run.time_limit: saving in time before a limit that the run is given. */
#ifndef TRAINER_DEADLINE_H
#define TRAINER_DEADLINE_H

#include "parallel/comm.h"

struct deadline {
    double limit_s; /* of the whole process; 0: none */
    double started; /* step_clock */
    double longest_step_s, longest_save_s;
};

/* Seconds of "90" (seconds), "90s", "45m", "2h", "1d", "MM:SS", "HH:MM:SS" or, as Slurm has it,
 * "D-HH", "D-HH:MM", "D-HH:MM:SS". False: it is none of these, or 0. */
bool deadline_seconds(const char *text, double *seconds);

/* text NULL: no limit. Errors: STATUS_USAGE. */
enum status deadline_init(struct deadline *deadline, const char *text)
    __attribute__((warn_unused_result));
/* What the last step with its sample, the time between two questions of an evaluation, or a save,
 * took. */
void deadline_step(struct deadline *deadline, double seconds);
void deadline_save(struct deadline *deadline, double seconds);
/* Collective. Whether another step, a save and as much again no longer fit: the same on every rank
 * (rank 0's clock). */
bool deadline_due(const struct deadline *deadline, struct comm *world);

#endif
