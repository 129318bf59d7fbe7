/* signals: SIGINT, SIGTERM and SIGUSR1 ask for a save at the next step edge, or that what is half
 * written be removed (import, export). Launchers and batch systems both send them: as often as they
 * come, they mean the same. Only a second SIGINT, at least a second after the first, ends the
 * process at once, with 130 and a line that says so. */
#ifndef TRAINER_SIGNALS_H
#define TRAINER_SIGNALS_H

#include "parallel/comm.h"

void signals_install(void);
int signals_caught(void); /* the number of the first, or 0 */
/* STATUS_PREEMPTED once there was one: for work that leaves nothing behind. */
enum status signals_check(void) __attribute__((warn_unused_result));
/* Collective. The largest signal number caught by any rank. */
int signals_agreed(struct comm *world);
/* Collective. The end of such work: rank 0 prints a failure, `world` is closed; after a signal the
 * process exits with 128 + its number. Returns status, its message cleared. */
enum status signals_end(struct comm *world, enum status status);

#endif
