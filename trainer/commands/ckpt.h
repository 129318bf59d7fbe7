/* ckpt: the actions of `switchyard ckpt`. argv[0] is "ckpt ACTION", for messages. */
#ifndef TRAINER_COMMANDS_CKPT_H
#define TRAINER_COMMANDS_CKPT_H

#include "kernels/base/status.h"

enum { CKPT_PATH_BYTES = 4096 };

enum status ckpt_ls(int argc, char **argv);
enum status ckpt_verify(int argc, char **argv);
enum status ckpt_diff(int argc, char **argv);
enum status ckpt_export_h5(int argc, char **argv);
enum status ckpt_rm(int argc, char **argv);

/* The checkpoint that `path` means: itself, or a run directory's newest whole one (skipped ones are
 * warned of). Errors: STATUS_DATA, STATUS_IO. */
enum status ckpt_place(const char *path, char place[CKPT_PATH_BYTES])
    __attribute__((warn_unused_result));

#endif
