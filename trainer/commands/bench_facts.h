/* bench_facts: what is known of the CUDA kernels without a GPU: for each kernel of bench_case.h
 * what it moves and computes and how long an H100 would need for that alone; what the compiler and
 * the disassembler say of every CUDA kernel in this binary.
 */
#ifndef TRAINER_COMMANDS_BENCH_FACTS_H
#define TRAINER_COMMANDS_BENCH_FACTS_H

#include "trainer/commands/bench_case.h"

/* Of bench's shapes; its buffers need not be there. json: members of the object that is open. */
void bench_facts_print(const struct bench *bench, bool json);

#endif
