/* fault: debug.fault, for tests and drills: what goes wrong, when, and where.
 *
 * "io:KIND:OPERATION": file operation number OPERATION of every rank's step loop that modifies,
 * counted from 1, fails or kills: KIND eio, enospc, edquot, eintr, short, slow, kill-before,
 * kill-torn or kill-after; a "+" behind it: every operation from then on.
 * "read:KIND:OPERATION": the same of operations that read: eio, eintr, short, slow, cut (it meets
 * the end of the file half way) or flip (one bit is wrong).
 * "KIND:STEP:RANK": on that rank at that step: kill (SIGKILL), segv, stop (SIGSTOP: a rank that
 * hangs), exit (leaves with 1). Of the batch that step has in a run that passes over none: nan
 * (this rank's gradients are NaN), gradient (1 % too large), spike (1000 times too large); of a
 * pipeline's last stage only, and with it those that it sends. slow:
 * from that step on forward and backward take this rank 1.5 times as long. Behind that step's
 * update one bit flips in its copy of a weight that another rank updates (weight), or of a router's
 * bias (bias).
 */
#ifndef TRAINER_FAULT_H
#define TRAINER_FAULT_H

#include <stdint.h>

#include "kernels/base/status.h"

/* NULL: nothing. fault_check only looks at it; heads: the lowest rank of the last pipeline stage,
 * where the gradients begin that can be wrong. fault_arm arms what is of file operations. Errors:
 * STATUS_USAGE. */
enum status fault_check(const char *text, int heads) __attribute__((warn_unused_result));
enum status fault_arm(const char *text) __attribute__((warn_unused_result));

/* At the start of a step: kills or stops this process where the text asks for it. */
void fault_step(const char *text, int64_t step, int rank);
/* What this rank's gradients of the step are multiplied by: 1, or what the text asks for. */
double fault_gradient(const char *text, int64_t step, int rank);
/* After `seconds` of work: sleeps as long as a slow rank takes longer. */
void fault_slow(const char *text, int64_t step, int rank, double seconds);
/* What of this rank's memory flips behind the step. */
enum fault_flip { FAULT_NO_FLIP, FAULT_FLIP_WEIGHT, FAULT_FLIP_BIAS };
enum fault_flip fault_flips(const char *text, int64_t step, int rank);

#endif
