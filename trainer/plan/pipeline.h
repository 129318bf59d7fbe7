/* pipeline: what a schedule of micro-batches over pipeline stages takes, by playing it.
 *
 * 1f1b: one forward, one backward (PipeDream-flush). zero_bubble: ZB-H1 (Qi et al. 2023): gradients
 * of weights fill gaps. dualpipe: DeepSeek-V3's: micro-batches from both ends, every rank holds two
 * stages, forward and backward of different micro-batches run as one
 * (github.com/deepseek-ai/DualPipe). With equal stages their gaps are (P-1)(F+B), (P-1)(F+B-2W) and
 * (P/2-1)(F&B+B-3W), B with W.
 */
#ifndef TRAINER_PLAN_PIPELINE_H
#define TRAINER_PLAN_PIPELINE_H

#include "trainer/config/config.h"

enum { PIPELINE_MOST = 64 }; /* stages */

/* Of one micro-batch; rank r of dualpipe holds stages r and stages - 1 - r. */
struct pipeline_times {
    int64_t stages, micro_batches;
    double forward[PIPELINE_MOST], backward[PIPELINE_MOST], weight[PIPELINE_MOST]; /* s */
    double pair[PIPELINE_MOST]; /* forward of stage s with backward (and weights) of the rank's
                                   other stage, as one */
    double hop;                 /* s from a stage to the next */
};

struct pipeline_result {
    double seconds;                /* until the last rank is done */
    double idle;                   /* of the busiest rank */
    int64_t held[PIPELINE_MOST];   /* most micro-batches between forward and gradients of weights at
                                      a time, by rank; of stage r */
    int64_t held_2[PIPELINE_MOST]; /* dualpipe: of stage stages - 1 - r */
};

/* Whether the schedule exists: dualpipe wants an even number of stages, and two micro-batches for
 * each. */
bool pipeline_fits(int schedule, int64_t stages, int64_t micro_batches);
/* schedule: enum config_pipeline, not auto. Errors: STATUS_RESOURCE. */
enum status pipeline_play(struct pipeline_result *result, const struct pipeline_times *times,
                          int schedule) __attribute__((warn_unused_result));

#endif
