/* search: every layout of a config on a cluster, ranked.
 *
 * Tried: parallel.ep x parallel.pp x parallel.zero x train.micro_batch x train.recompute x
 * router.dispatch x, where there are stages and the config leaves it open, the schedules of
 * compare.h. Blocks go to stages by cost. Layouts that cannot be say why; those that do not fit
 * say by how much.
 */
#ifndef TRAINER_PLAN_SEARCH_H
#define TRAINER_PLAN_SEARCH_H

#include "trainer/plan/compare.h"

struct search_result {
    int64_t ep, pp, zero, micro_batch;
    int recompute, dispatch; /* enum config_... */
    struct compare_schedule schedule;
    double tokens_per_s, step, bubble; /* 0: not planned */
    size_t memory;
    bool legal, fits, trains; /* plan_trains */
    char why[PLAN_TEXT];      /* not */
};

struct search {
    struct search_result *result; /* [count] owned: those that fit by speed, then the others by
                                     memory, then those that cannot be */
    int64_t count, fitting, legal;
};

/* stages: pipelines too. Errors: STATUS_RESOURCE. */
enum status search_run(struct search *search, const struct config *config,
                       const struct hardware *hardware, bool stages)
    __attribute__((warn_unused_result));
void search_free(struct search *search);
/* key=value ... that make a config the result's. */
void search_overrides(const struct search_result *result, char *out, size_t bytes);
void search_print_text(const struct search *search, int64_t rows);
void search_print_json(const struct search *search);

#endif
