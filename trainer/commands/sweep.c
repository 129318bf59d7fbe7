#include <math.h>
#include <stdio.h>

#include "kernels/base/io.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/sweep/sweep.h"

/* Trials of a job array keep no record of their own: what their metrics say counts. */
static void look_at_all(struct sweep *sweep)
{
    for (int64_t i = 0; i < sweep->plan.trials; i++) {
        struct sweep_trial *trial = &sweep->trial[i];
        if (trial->state == TRIAL_WAITING || trial->state == TRIAL_RUNNING) {
            trial_look(trial, &sweep->plan, 0);
            trial->state = trial->step >= sweep_plan_steps(&sweep->plan, &trial->values)
                               ? TRIAL_DONE
                           : trial->step > 0 ? TRIAL_RUNNING
                                             : trial->state;
        }
    }
}

static enum status run(struct sweep *sweep, bool table, bool quiet, bool retry)
{
    enum status status = STATUS_OK;
    char best[4096];
    if (table) {
        look_at_all(sweep);
    } else {
        status = sweep_run(sweep, quiet, retry);
    }
    if (status != STATUS_OK && status != STATUS_PREEMPTED) {
        return status;
    }
    sweep_print(stdout, sweep);
    if (sweep_failed(sweep) > 0) {
        printf("%lld of %lld trials failed: %s/KKKK.log has what they printed, --retry runs them "
               "again\n",
               (long long)sweep_failed(sweep), (long long)sweep->plan.trials, sweep->plan.dir);
    }
    if (status != STATUS_OK || !io_exists(sweep->plan.dir)) {
        return status;
    }
    TRY(sweep_write(sweep));
    snprintf(best, sizeof best, "%.4000s/best.yaml", sweep->plan.dir);
    printf("%s: results.csv, results.html%s\n", sweep->plan.dir,
           io_exists(best) ? ", best.yaml" : "");
    return table ? STATUS_OK : sweep_outcome(sweep);
}

enum status command_sweep(int argc, char **argv)
{
    struct option_result options;
    struct sweep sweep;
    bool table = false, quiet = false, slurm = false, retry = false;
    int64_t trial = -1;
    const struct option_spec specs[] = {
        {"--table", OPTION_FLAG, &table, NULL, "only show how the trials stand"},
        {"--retry", OPTION_FLAG, &retry, NULL, "failed trials run again"},
        {"--quiet", OPTION_FLAG, &quiet, NULL, "no line per event"},
        {"--slurm", OPTION_FLAG, &slurm, NULL, "write a Slurm job array of the trials instead"},
        {"--trial", OPTION_INT, &trial, "K", "become trial K: what a task of that array runs"},
        {0},
    };
    TRY(options_parse(&options, argc, argv, specs, "sweep SWEEP.yaml",
                      "Trains a config with many values of some keys: grid, random, or asha, which "
                      "stops the worse ones early.\nTrials run side by side in slots of the cores; "
                      "the same command goes on where it stopped.\ndocs/sweeps.md explains the "
                      "file; configs/sweeps has examples.",
                      1, 1));
    if (options.help) {
        return STATUS_OK;
    }
    enum status status = sweep_open(&sweep, options.words[0]);
    if (status == STATUS_OK) {
        status = trial >= 0 ? sweep_exec(&sweep, trial)
                 : slurm    ? sweep_write_slurm(&sweep, options.words[0])
                            : run(&sweep, table, quiet, retry);
    }
    sweep_close(&sweep);
    return status;
}
