/* sweep: runs the trials of a plan side by side, as they fit into its slots.
 *
 * A slot is a share of the cores that this process may use: each trial's launcher inherits it, so
 * that trials do not disturb each other. A trial that fails is recorded and touches no other. ASHA
 * (Li et al., 2020): a trial saves and ends at a rung (run.pause_at), and goes on, by
 * resuming, once it is among the best `keep` of all that reached it; when a slot is free, the
 * highest rung with such a trial is served first, then a new trial begins. When nothing is left to
 * begin, those that wait at a rung are stopped.
 */
#ifndef TRAINER_SWEEP_SWEEP_H
#define TRAINER_SWEEP_SWEEP_H

#include <stdio.h>

#include "trainer/sweep/trial.h"

struct sweep {
    struct sweep_plan plan;
    struct sweep_trial *trial; /* [plan.trials] owned */
};

/* Reads the plan and what its dir already holds. The sweep must be closed either way. */
enum status sweep_open(struct sweep *sweep, const char *path) __attribute__((warn_unused_result));
void sweep_close(struct sweep *sweep); /* accepts a zeroed one */

/* Runs what is not done yet. quiet: no line per event. retry: failed trials begin anew. Errors:
 * STATUS_PREEMPTED after a signal, when every running trial has saved; STATUS_USAGE when another
 * sweep has the dir. */
enum status sweep_run(struct sweep *sweep, bool quiet, bool retry)
    __attribute__((warn_unused_result));
/* Replaces this process by the launcher of one trial, for job arrays. Returns only on error. */
enum status sweep_exec(struct sweep *sweep, int64_t index) __attribute__((warn_unused_result));

/* How many trials have failed. */
int64_t sweep_failed(const struct sweep *sweep);
/* When every trial has failed: the status whose exit code they all have, else STATUS_INTERNAL, with
 * the first one's reason. STATUS_OK when any has not. */
enum status sweep_outcome(const struct sweep *sweep) __attribute__((warn_unused_result));

/* The trials, best first: lines for the terminal. */
void sweep_print(FILE *out, const struct sweep *sweep);
/* Writes DIR/results.csv, results.html and, when a trial has a value, best.yaml: its config. */
enum status sweep_write(const struct sweep *sweep) __attribute__((warn_unused_result));
/* Writes DIR/sweep.sbatch: a Slurm job array of the trials (not asha's). */
enum status sweep_write_slurm(const struct sweep *sweep, const char *path)
    __attribute__((warn_unused_result));

#endif
