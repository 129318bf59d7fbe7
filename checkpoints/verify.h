/* verify: a checkpoint read from end to end, all that is wrong with it told.
 */
#ifndef CHECKPOINTS_VERIFY_H
#define CHECKPOINTS_VERIFY_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/base/status.h"

struct verify_result {
    int64_t step, files, bytes, tensors;
    int64_t problems;
};

/* Local. Checks the manifest, every file's size and every block's hash; `deep`: then also each
 * tensor's own hash, and that HDF5 finds in the shards and in model.h5 what the manifest says.
 * `tell` gets one line per problem: file, block, and the tensors that lie there. Errors:
 * STATUS_DATA when there are problems (the message counts them), STATUS_RESOURCE, STATUS_IO. */
enum status verify_checkpoint(const char *path, bool deep, struct verify_result *result,
                              void (*tell)(void *context, const char *line), void *context)
    __attribute__((warn_unused_result));

#endif
