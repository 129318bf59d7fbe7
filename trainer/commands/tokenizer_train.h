/* tokenizer_train: the action `train` of command `tokenizer`. */
#ifndef TRAINER_COMMANDS_TOKENIZER_TRAIN_H
#define TRAINER_COMMANDS_TOKENIZER_TRAIN_H

#include "kernels/base/status.h"

/* argv[0] is "train". */
enum status tokenizer_train_command(int argc, char **argv) __attribute__((warn_unused_result));

#endif
