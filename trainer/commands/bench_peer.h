/* bench_peer: another program's times for the kernels that were just timed, on the same shapes, in
 * the same run.
 */
#ifndef TRAINER_COMMANDS_BENCH_PEER_H
#define TRAINER_COMMANDS_BENCH_PEER_H

#include "trainer/commands/bench_case.h"

/* Runs `command` by the shell with these words behind it:
 *
 *   --plain --device cpu|cuda --dtype bfloat16|float32 --dims n=4096,c=512,...
 *
 * (tests/gpu/bench.py says which dims there are) and prints what it says beside `times`. It prints
 * lines: `peer WHO` once, then `NAME MILLISECONDS` or `NAME - REASON`; exit code 77 with a line
 * that says why: it cannot be asked here, which is printed and no error. json: a member `peer` of
 * the object that is open, behind another. Errors: STATUS_RESOURCE; STATUS_INTERNAL when it fails,
 * or says nothing of any kernel, or something else. */
enum status bench_peer(const struct bench *bench, const char *command, bool cuda,
                       const struct bench_time *times, int count, bool json)
    __attribute__((warn_unused_result));

#endif
