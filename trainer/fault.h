/* fault: debug.fault, for tests: the k-th file operation of the step loop fails or kills its rank.
 */
#ifndef TRAINER_FAULT_H
#define TRAINER_FAULT_H

#include "kernels/base/status.h"

/* "io:KIND:OPERATION" with KIND eio, enospc, short, kill-before, kill-torn or kill-after; a "+"
 * behind it: every operation from then on. NULL: nothing. fault_check only looks at it. Errors:
 * STATUS_USAGE. */
enum status fault_check(const char *text) __attribute__((warn_unused_result));
enum status fault_arm(const char *text) __attribute__((warn_unused_result));

#endif
