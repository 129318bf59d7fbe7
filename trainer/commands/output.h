/* output: whether what a command printed got where it should. */
#ifndef TRAINER_COMMANDS_OUTPUT_H
#define TRAINER_COMMANDS_OUTPUT_H

#include <stdbool.h>

/* Writes what standard output still holds. Whether something printed since the start, or since the
 * last call, could not be written; a reader that went away (`| head`) wanted no more: false. */
bool output_lost(void) __attribute__((warn_unused_result));

#endif
