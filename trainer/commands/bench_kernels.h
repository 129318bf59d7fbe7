/* bench_kernels: every kernel of a config's step alone, on random data of the shapes of one
 * micro-batch and one layer. */
#ifndef TRAINER_COMMANDS_BENCH_KERNELS_H
#define TRAINER_COMMANDS_BENCH_KERNELS_H

#include "trainer/session.h"

/* Collective. Each rank times its own kernels at the same time as the others (its experts get a
 * balanced share of the rows); rank 0 prints its own numbers. Errors: STATUS_RESOURCE. */
enum status bench_kernels(struct session *session, bool json) __attribute__((warn_unused_result));

#endif
