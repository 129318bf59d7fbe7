/* compare: the same layout under every schedule of its pipeline. */
#ifndef TRAINER_PLAN_COMPARE_H
#define TRAINER_PLAN_COMPARE_H

#include "trainer/plan/plan.h"

/* Values of parallel.schedule and parallel.virtual_stages that are worth a try. */
struct compare_schedule {
    int pipeline; /* enum config_pipeline */
    int64_t virtual_stages;
};
enum { COMPARE_SCHEDULES = 6 };
extern const struct compare_schedule compare_schedules[COMPARE_SCHEDULES];
extern const char *const compare_names[]; /* of enum config_pipeline, as the config has them */

struct compare_row {
    struct compare_schedule schedule;
    bool legal, fits;
    double step, bubble; /* s */
    double held_batches; /* as plan's */
    size_t memory;       /* bytes of the fullest rank */
    char why[PLAN_TEXT]; /* not legal */
};

struct comparison {
    struct compare_row row[COMPARE_SCHEDULES];
    int count; /* 0: no pipeline */
};

/* Errors: STATUS_RESOURCE; a schedule that cannot be is none. */
enum status compare_make(struct comparison *comparison, const struct plan *plan)
    __attribute__((warn_unused_result));
void compare_print_text(const struct comparison *comparison);
void compare_print_json(const struct comparison *comparison); /* ,"schedules":[...] */

#endif
