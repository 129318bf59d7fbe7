/* watchdog: a thread beside each rank's training that notices when nothing moves any more, or when
 * another rank of its machine has died, says where everybody stood, and ends the job.
 *
 * Each rank keeps a beat in run.dir/health/RANK, a mapped file that its thread refreshes: step,
 * section, the communication it is in, its layer and bytes. Progress is a new section, layer, a
 * finished communication or, in a save, a byte written; time without any counts only while this
 * process runs, so that a stopped and continued job is no hang. When a limit is over, one rank (the
 * first to make run.dir/health/claim) looks twice at all beats and prints one block: who waits in
 * what, and whose beat stands still. The process exits with 76, and mpirun ends the others. A rank
 * that dies by a signal says so itself; one that is killed is missed by the others.
 */
#ifndef TRAINER_WATCHDOG_H
#define TRAINER_WATCHDOG_H

#include "trainer/session.h"

enum watchdog_section {
    WATCHDOG_SETUP,
    WATCHDOG_STEP,
    WATCHDOG_EVALUATE,
    WATCHDOG_SAMPLE,
    WATCHDOG_SAVE,
    WATCHDOG_END, /* nothing is watched any more: what exits now is done */
};

struct watchdog;

/* Collective. Makes run.dir/health anew. Limits come from config.watchdog; where the folder cannot
 * be made, or it is switched off, *watchdog is NULL and the rest does nothing. Errors:
 * STATUS_RESOURCE. */
enum status watchdog_start(struct watchdog **watchdog, const struct session *session)
    __attribute__((warn_unused_result));
/* Local. What this rank does from now on. */
void watchdog_enter(struct watchdog *watchdog, enum watchdog_section section, int64_t step);
/* Local. The newest checkpoint, for the message. */
void watchdog_saved(struct watchdog *watchdog, int64_t step);
/* Local. Called from the watchdog's thread before it ends the job, context borrowed; returns soon.
 */
void watchdog_before_end(struct watchdog *watchdog, void (*call)(void *context), void *context);
/* Local. Ends the thread; accepts NULL. */
void watchdog_stop(struct watchdog *watchdog);

#endif
