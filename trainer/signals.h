/* signals: SIGINT, SIGTERM and SIGUSR1 ask for a save at the next step edge; a second one ends the
 * process at once. */
#ifndef TRAINER_SIGNALS_H
#define TRAINER_SIGNALS_H

void signals_install(void);
int signals_caught(void); /* the signal's number, or 0 */

#endif
