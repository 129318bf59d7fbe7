/* rollback: a run goes back to an older checkpoint of its own and passes over the batches that led
 * it astray (guard.h).
 */
#ifndef TRAINER_ROLLBACK_H
#define TRAINER_ROLLBACK_H

#include "trainer/state.h"

/* Collective. The model and *at as the newest checkpoint under `root` has them that was due by
 * checkpoint.every_steps before step `trouble` (by time, where that is 0): one that a signal had
 * saved is taken only where no such one is left, so that a run that was stopped goes back where one
 * that was not does. *found false: there is
 * none, and neither is as it was. Errors, agreed: those of state_load. */
enum status rollback_load(struct model *model, const char *root, int64_t trouble,
                          struct progress_state *at, bool *found)
    __attribute__((warn_unused_result));
/* Collective. Checkpoints of steps behind `step`, of what was given up, are deleted: a resume would
 * take them, and meet the same trouble. False, the same everywhere: one could not be deleted, which
 * `first` has told of; to be tried again. */
bool rollback_forget(struct comm *world, const char *root, int64_t step, bool first);
/* now: of the checkpoint, or zero; its guard's counts and its data go on behind those of `was`,
 * where step `trouble` began, and its batch of `sequences` samples. */
void rollback_place(struct progress_state *now, const struct progress_state *was, int64_t trouble,
                    int64_t sequences);

#endif
