/* run_dir: the folder of a run: created, locked, described. Rank 0 only. */
#ifndef TRAINER_RUN_DIR_H
#define TRAINER_RUN_DIR_H

#include <jansson.h>

#include "kernels/base/io.h"
#include "trainer/session.h"

/* Creates run.dir (with `fresh`: after renaming what is there to run.dir.old-N), takes its lock
 * (STATUS_USAGE when another run has it), clears leftovers of dead saves. */
enum status run_dir_open(const struct session *session, bool fresh, struct io_file *lock)
    __attribute__((warn_unused_result));

/* Writes config.yaml and run.json, which lists this start, behind `step`, after those before it:
 * once the run is known to fit the checkpoints that are there, so that a refused command leaves the
 * description of the run as it was. from: the checkpoint that it goes on from, "": none. Where that
 * has other settings the start says which changed, and the earlier ones are kept beside
 * config.yaml, under run_dir_earlier's name. */
enum status run_dir_describe(const struct session *session, int64_t step, const char *from)
    __attribute__((warn_unused_result));

enum { RUN_DIR_NAME_BYTES = 64 };
/* The file in run.dir with the settings of the steps up to `step`, behind which they changed. */
void run_dir_earlier(int64_t step, char name[RUN_DIR_NAME_BYTES]);

/* Adds to run.json, or replaces there. value: owned by the call. Errors: STATUS_IO; STATUS_INTERNAL
 * where there is no run.json that can be read. */
enum status run_dir_note(const struct session *session, const char *key, json_t *value)
    __attribute__((warn_unused_result));

/* run.dir/name in out. */
void run_dir_path(const struct session *session, const char *name, char *out, size_t bytes);

#endif
