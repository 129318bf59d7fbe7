/* bench_checkpoint: saving and loading a config's whole training state, beside what the disk does
 * for plain files of the same size at the same time.
 */
#ifndef TRAINER_COMMANDS_BENCH_CHECKPOINT_H
#define TRAINER_COMMANDS_BENCH_CHECKPOINT_H

#include "trainer/session.h"

/* Collective. Works in the new folder run.dir.bench, which it removes; `rounds` rounds (1 to 100)
 * of raw write, save, raw read and load, and, unless NULL, a load of the checkpoint `other`, which
 * another layout may have saved; prints medians on rank 0. Errors: STATUS_USAGE when that folder is
 * there, STATUS_IO, STATUS_RESOURCE, those of a load. */
enum status bench_checkpoint(struct session *session, int64_t rounds, const char *other, bool json)
    __attribute__((warn_unused_result));

#endif
