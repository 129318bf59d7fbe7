/* prepare_pipeline: one reader thread, which cuts the inputs into batches, and workers that encode
 * them; the caller takes the results in order.
 *
 * A ring of slots, batch after batch: empty -> read -> encoded -> empty. Memory is bounded by the
 * slots: the reader waits for a free one, and while more than PIPELINE_BYTES are in them.
 */
#ifndef DATA_PREPARE_PIPELINE_H
#define DATA_PREPARE_PIPELINE_H

#include "data/prepare_encode.h"

static const int64_t PIPELINE_BYTES = (int64_t)1 << 28;

struct prepare_pipeline; /* hides pthread */

/* Local. Batches first, first + stride, ... are encoded by `workers` threads. Errors:
 * STATUS_RESOURCE. Close it either way. */
enum status prepare_pipeline_open(struct prepare_pipeline **pipeline,
                                  const struct prepare_rules *rules, int workers, int64_t first,
                                  int64_t stride) __attribute__((warn_unused_result));
/* Local, blocks. The next batch encoded, to be given back before the next call; *block NULL: there
 * is none. Errors: those of reading and encoding it: there is no next one then. */
enum status prepare_pipeline_take(struct prepare_pipeline *pipeline, struct prepare_block **block)
    __attribute__((warn_unused_result));
void prepare_pipeline_give(struct prepare_pipeline *pipeline);
/* Stops the threads; accepts NULL. */
void prepare_pipeline_close(struct prepare_pipeline *pipeline);

#endif
