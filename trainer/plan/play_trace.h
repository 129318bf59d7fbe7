/* play_trace: a planned step as a Chrome trace (chrome://tracing, ui.perfetto.dev): a row for each
 * rank of the pipeline, a slice for each action of its track, named as docs/parallelism.md's
 * pictures are: F forward, B backward, I and W its halves for inputs and weights.
 */
#ifndef TRAINER_PLAN_PLAY_TRACE_H
#define TRAINER_PLAN_PLAY_TRACE_H

#include "parallel/timeline.h"

/* Errors: STATUS_IO. */
enum status play_trace_write(const char *path, const struct pipeline *pipeline,
                             const struct timeline *timeline) __attribute__((warn_unused_result));

#endif
