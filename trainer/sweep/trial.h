/* trial: one run of a sweep: where it stands, kept in DIR/KKKK.json so that a sweep which was
 * interrupted goes on; its run directory is DIR/KKKK, what it prints DIR/KKKK.log. */
#ifndef TRAINER_SWEEP_TRIAL_H
#define TRAINER_SWEEP_TRIAL_H

#include <sys/types.h>

#include "trainer/sweep/plan.h"

enum trial_state {
    TRIAL_WAITING, /* not begun */
    TRIAL_RUNNING, /* or interrupted: resumes */
    TRIAL_PAUSED,  /* at a rung, saved */
    TRIAL_DONE,
    TRIAL_FAILED,
    TRIAL_STOPPED, /* at a rung, not among those that go on */
    TRIAL_STATES
};

struct sweep_trial {
    int64_t index;
    struct sweep_trial_values values;
    int state;                      /* enum trial_state */
    int rungs;                      /* that it has reached */
    double rung_value[SWEEP_RUNGS]; /* its metric there */
    double value;                   /* its metric now; NAN: none yet */
    int64_t step;
    int exit_code; /* of a failed one; 128 + signal when one ended it */
    char why[256]; /* of a failed one: its last line, or what its launcher said */
    /* while it runs */
    pid_t pid; /* 0: it does not */
    int slot;
    int64_t pause_at;       /* the rung at which it saves and ends; 0: it runs to its end */
    bool asked;             /* signalled to save and end */
    uint64_t record_before; /* trial_record when its process began */
    int64_t log_before;     /* bytes of its log then */
};

const char *trial_state_name(int state);

/* Values from the plan, the rest from DIR/KKKK.json where there is one. Errors: STATUS_USAGE when
 * that has other values (the sweep file was changed), STATUS_DATA, STATUS_RESOURCE. */
enum status trial_open(struct sweep_trial *trial, const struct sweep_plan *plan, int64_t index)
    __attribute__((warn_unused_result));
void trial_close(struct sweep_trial *trial); /* accepts a zeroed one */
/* Writes DIR/KKKK.json. */
enum status trial_keep(const struct sweep_trial *trial, const struct sweep_plan *plan)
    __attribute__((warn_unused_result));

/* Which run.json the trial's directory holds, as a number that changes when a start of the trial
 * writes its own: from then on all its ranks heed signals. 0: none yet. */
uint64_t trial_record(const struct sweep_trial *trial, const struct sweep_plan *plan);

/* DIR/KKKK, with `suffix` behind it. */
void trial_path(const struct sweep_plan *plan, int64_t index, const char *suffix, char *out,
                size_t bytes);
/* Reads step and metric from its metrics as far as they are; at `limit` steps (0: all). */
void trial_look(struct sweep_trial *trial, const struct sweep_plan *plan, int64_t limit);
/* What its log says since its process began, for `why`. */
void trial_read_why(struct sweep_trial *trial, const struct sweep_plan *plan);

#endif
