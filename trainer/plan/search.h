/* search: every layout of a config on a cluster, ranked.
 *
 * Tried: parallel.ep x parallel.pp x train.micro_batch x train.recompute x router.dispatch (and
 * cluster.pipeline where there are stages); parallel.zero has one value. Layouts that cannot be say
 * why; those that do not fit say by how much. Blocks of a kind are alike, so that one, two and
 * three of them tell the memory of all; the best are then planned in full.
 */
#ifndef TRAINER_PLAN_SEARCH_H
#define TRAINER_PLAN_SEARCH_H

#include "trainer/plan/plan.h"

struct search_result {
    int64_t ep, pp, micro_batch;
    int recompute, dispatch, pipeline; /* enum config_... */
    double tokens_per_s, step, bubble; /* 0: not planned */
    size_t memory;
    bool legal, fits;
    char why[PLAN_TEXT]; /* not */
};

struct search {
    struct search_result *result; /* [count] owned: those that fit by speed, then the others by
                                     memory, then those that cannot be */
    int64_t count, fitting, legal;
};

/* stages: pipelines too, which plan knows and training does not. Errors: STATUS_RESOURCE. */
enum status search_run(struct search *search, const struct config *config,
                       const struct hardware *hardware, bool stages)
    __attribute__((warn_unused_result));
void search_free(struct search *search);
/* key=value ... that make a config the result's. */
void search_overrides(const struct search_result *result, char *out, size_t bytes);
void search_print_text(const struct search *search, int64_t rows);
void search_print_json(const struct search *search);

#endif
