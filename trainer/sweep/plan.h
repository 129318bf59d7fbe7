/* plan: a sweep file: which config, which keys with which values, how trials are launched.
 *
 *   base: configs/quickstart.yaml
 *   dir: runs/sweeps/lr             # trial K runs in DIR/KKKK
 *   method: grid                    # grid | random | asha
 *   metric: valid_loss              # least is best: valid_loss (the last), or loss
 *   trials: 12                      # random, asha
 *   seed: 1
 *   set: {run.steps: 300}           # of every trial
 *   parameters:
 *     optimizer.lr: [3e-4, 1e-3]                                     # one of these
 *     optimizer.weight_decay: {low: 0.01, high: 0.3, scale: log}     # random, asha: drawn
 *   launch: {ranks: 2, slots: 1, command: "mpirun -np {ranks} --bind-to none"}
 *   asha: {rungs: [100, 300], keep: 0.34}        # steps at which the best share goes on
 *
 * Trial K's values depend on the file and K alone: a grid counts through the lists, the last
 * parameter fastest; random draws are counter-based (kernels/base/rng.h).
 */
#ifndef TRAINER_SWEEP_PLAN_H
#define TRAINER_SWEEP_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/base/status.h"

enum { SWEEP_PARAMETERS = 32, SWEEP_VALUES = 64, SWEEP_RUNGS = 8, SWEEP_TRIALS = 10000 };
enum sweep_method { SWEEP_GRID, SWEEP_RANDOM, SWEEP_ASHA };

struct sweep_parameter {
    char *key;                 /* owned */
    char *value[SWEEP_VALUES]; /* owned */
    int values;                /* 0: a range */
    double low, high;
    bool logarithmic, whole; /* of a range; whole: integers, as both its ends are */
};

struct sweep_plan {
    char *base, *dir, *metric, *command; /* owned; command NULL: run without a launcher */
    int method;                          /* enum sweep_method */
    int64_t trials;
    uint64_t seed;
    int fixed_count;
    char *fixed[SWEEP_PARAMETERS]; /* owned: "key=value" */
    int parameters;
    struct sweep_parameter parameter[SWEEP_PARAMETERS];
    int64_t ranks, slots;
    int rungs;
    int64_t rung[SWEEP_RUNGS]; /* rising; the last stands for the end of the run */
    double keep;
    int64_t steps; /* of the run, as the config has them; a trial's: sweep_plan_steps */
};

/* The overrides of one trial. */
struct sweep_trial_values {
    int count;
    char *text[2 * SWEEP_PARAMETERS]; /* owned: "key=value"; the fixed ones first */
};

/* Reads the file and tries the config of every trial (of a large sweep: of the first and last 50),
 * so that a bad value ends the sweep before it begins. Errors: STATUS_IO, STATUS_USAGE with file
 * and line. The plan must be freed either way. */
enum status sweep_plan_load(struct sweep_plan *plan, const char *path)
    __attribute__((warn_unused_result));
void sweep_plan_free(struct sweep_plan *plan); /* accepts a zeroed one */

/* Values of trial `index` < plan->trials. Errors: STATUS_RESOURCE. */
enum status sweep_plan_trial(const struct sweep_plan *plan, int64_t index,
                             struct sweep_trial_values *values) __attribute__((warn_unused_result));
/* The run.steps of a trial with these values. */
int64_t sweep_plan_steps(const struct sweep_plan *plan, const struct sweep_trial_values *values);
void sweep_trial_values_free(struct sweep_trial_values *values);

#endif
