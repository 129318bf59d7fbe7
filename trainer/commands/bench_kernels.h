/* bench_kernels: every kernel of a config's step alone, on random data of the shapes of one
 * micro-batch and one layer.
 */
#ifndef TRAINER_COMMANDS_BENCH_KERNELS_H
#define TRAINER_COMMANDS_BENCH_KERNELS_H

#include "trainer/session.h"

struct bench_kernels_options {
    bool json;
    const char *peer; /* a command that times the same, or NULL: bench_peer.h */
};

/* Collective. Each rank times its own kernels at the same time as the others (its experts get a
 * balanced share of the rows); rank 0 prints its own numbers. Errors: STATUS_RESOURCE; of the peer,
 * STATUS_USAGE, STATUS_INTERNAL. */
enum status bench_kernels(struct session *session, const struct bench_kernels_options *options)
    __attribute__((warn_unused_result));

/* Collective. What is known of the config's kernels without running anything, printed by rank 0:
 * bench_facts.h. `path`:
 * session_read_config. */
enum status bench_kernels_facts(const char *path, char *const *overrides, int count, bool json)
    __attribute__((warn_unused_result));

#endif
