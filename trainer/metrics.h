/* metrics: metrics.jsonl (one object per optimizer step), TensorBoard events, the printed lines,
 * log.txt. Rank 0 only.
 *
 * A disk that is full, or fails, ends no run here: lines that cannot be written, or taken out when
 * the run goes back, are told of once, and new ones kept in memory until they can be (line_log.h);
 * what never could be is told at the end.
 * The checkpoints of the run are what says whether it may go on.
 *
 * A step is saved before its evaluation, which may be killed or left. Until the evaluation is done,
 * the step's line is in metrics.pending, too: a run that resumes at that step makes the evaluation
 * first, and its line then says what it says in a run that nobody stopped.
 */
#ifndef TRAINER_METRICS_H
#define TRAINER_METRICS_H

#include <stdio.h>

#include "kernels/device.h"
#include "trainer/events.h"
#include "trainer/line_log.h"
#include "trainer/step.h"

struct metrics {
    const struct device *device; /* borrowed */
    struct line_log jsonl, log;
    bool jsonl_fails, log_fails; /* which was told */
    int64_t back;                /* jsonl.held: its lines behind this step are to be taken out */
    FILE *line;                  /* owned: a line of jsonl in the making, in memory: */
    char *text;                  /* [bytes] owned */
    size_t bytes;
    bool pending_fails; /* was told of metrics.pending */
    char *pending_path; /* owned: of metrics.pending */
    char *pending;      /* owned: what it has of the step that the run resumes at; NULL: nothing */
    int64_t step;       /* under way, or the last */
    bool tensorboard;   /* whether to write events */
    struct events events; /* closed: without them, or once they could not be written */
    int columns;          /* of the terminal stdout ends in: a bar beside the lines; 0: none */
    int64_t steps, every; /* of the run; of printed lines */
    int64_t first_step;   /* of this process */
    int64_t tokens, tokens_done; /* that this process trains on, and has: for the ETA */
    double started;              /* clock at the first step */
    double peak_flops;           /* 0: mfu is null */
    double flops_per_token;
};

/* Opens run_dir/metrics.jsonl, keeping only lines of steps <= step, or with step 0 all of them, in
 * metrics.jsonl.old-N; log.txt, and a file in run_dir/tensorboard; reads metrics.pending. */
enum status metrics_open(struct metrics *metrics, const char *run_dir, int64_t step)
    __attribute__((warn_unused_result));
void metrics_close(struct metrics *metrics); /* accepts a zeroed one */
/* The run went back to `step`, and `tokens` of training are left: later lines are taken out. */
void metrics_rewind(struct metrics *metrics, int64_t step, int64_t tokens);
/* The end of the run, whose last checkpoint is saved: STATUS_IO when lines of metrics.jsonl could
 * not be written; one that is to go on (not `done`) is warned of that. */
enum status metrics_finish(struct metrics *metrics, bool done) __attribute__((warn_unused_result));

/* Bytes of memory of this rank: of its GPU what it holds now, on the CPU its largest resident set
 * so far. */
int64_t metrics_memory(const struct device *device);

/* Writes one line and shows it. valid_loss NAN: not measured. The load of the experts is the
 * stepper's. */
void metrics_step(struct metrics *metrics, int64_t step, const struct step_result *result,
                  double valid_loss, const struct stepper *stepper);
/* Before the save and the evaluation of a step: its line goes to metrics.pending. */
void metrics_begin_evaluation(struct metrics *metrics, int64_t step,
                              const struct step_result *result, const struct stepper *stepper);
/* The evaluation is done, and metrics_step has its result. */
void metrics_end_evaluation(struct metrics *metrics);
/* Of metrics->pending: the evaluation is made up for, with this result. */
void metrics_make_up(struct metrics *metrics, double valid_loss);
/* A line of text for the terminal and log.txt. */
void metrics_say(struct metrics *metrics, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
