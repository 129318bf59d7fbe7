/* launch: the process of one trial. */
#ifndef TRAINER_SWEEP_LAUNCH_H
#define TRAINER_SWEEP_LAUNCH_H

#include "trainer/sweep/trial.h"

enum { LAUNCH_WORDS = 256 };

/* The command line of a trial: the launcher's words, this program, train, base, values, run.dir. */
struct launch {
    char *word[LAUNCH_WORDS]; /* owned, ends with NULL */
    int words;
};

/* threads: of each rank; 0: as the program chooses. Errors: STATUS_RESOURCE, STATUS_USAGE for more
 * words than there is room for. */
enum status launch_init(struct launch *launch, const struct sweep_plan *plan,
                        const struct sweep_trial *trial, int threads)
    __attribute__((warn_unused_result));
void launch_free(struct launch *launch);

/* Starts the trial in `slot` of plan->slots: a process group of its own, on that share of the
 * cores, output appended to its log, asked to save and end when this thread, the sweep, is gone.
 * Sets trial->pid. Errors: STATUS_RESOURCE, STATUS_IO. */
enum status launch_start(struct sweep_trial *trial, const struct sweep_plan *plan, int slot)
    __attribute__((warn_unused_result));

#endif
