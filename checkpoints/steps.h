/* steps: the folders of a run's checkpoints, named by their steps. Private to checkpoints/. */
#ifndef CHECKPOINTS_STEPS_H
#define CHECKPOINTS_STEPS_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/base/status.h"

enum { STEPS_PATH_BYTES = 4096, STEPS_NAME_BYTES = 32 };

/* root/name. Errors: STATUS_IO when too long. */
enum status steps_join(char out[STEPS_PATH_BYTES], const char *root, const char *name)
    __attribute__((warn_unused_result));
void steps_name(char name[STEPS_NAME_BYTES], int64_t step); /* 8 digits, or more */
bool steps_is_name(const char *name);
/* root/NAME of a step. */
enum status steps_path(char out[STEPS_PATH_BYTES], const char *root, int64_t step)
    __attribute__((warn_unused_result));

/* Step numbers of the folders under root, newest first; *steps owned by caller. No root: none. */
enum status steps_list(const char *root, int64_t **steps, int64_t *count)
    __attribute__((warn_unused_result));

/* Out of sight by one rename, then deleted, manifest first: a half-deleted checkpoint is never
 * mistaken for one. */
enum status steps_discard(const char *root, int64_t step) __attribute__((warn_unused_result));
/* What this process put out of sight and could not delete. */
enum status steps_discard_again(const char *root) __attribute__((warn_unused_result));

#endif
