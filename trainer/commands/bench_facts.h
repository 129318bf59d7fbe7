/* bench_facts: what is known of the CUDA kernels without a GPU: what the compiler says of each, and
 * for the kernels that were timed what they move and compute, and how long an H100 would need for
 * that alone.
 */
#ifndef TRAINER_COMMANDS_BENCH_FACTS_H
#define TRAINER_COMMANDS_BENCH_FACTS_H

#include "trainer/commands/bench_case.h"

/* `list` of `count` kernels, timed on the CPU with the same shapes. Nothing where the binary has no
 * CUDA. json: more members of the object that is open. */
void bench_facts_print(const struct bench *bench, const struct kernel *list, int count, bool json);

#endif
