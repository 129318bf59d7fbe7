/* search: every layout of a config on a cluster, ranked.
 *
 * Layouts are all parallel.ep x etp x tp (within a node) x cp x zero, with stages x pp, that divide
 * the ranks, each with train.micro_batch and train.recompute. The best of them are tried with
 * padded dispatch and, where the config leaves it open, the other schedules of compare.h, and
 * without stages passes side by side (parallel.overlap). Blocks go
 * to stages by cost. Layouts that cannot be say why; those that do not fit say by how much. Larger
 * micro-batches and less recomputation than what does not fit are not planned.
 */
#ifndef TRAINER_PLAN_SEARCH_H
#define TRAINER_PLAN_SEARCH_H

#include "trainer/plan/compare.h"

struct search_result {
    int64_t ep, etp, pp, tp, cp, zero, micro_batch;
    int recompute, dispatch, overlap; /* enum config_... */
    struct compare_schedule schedule;
    double tokens_per_s, step, bubble; /* 0: not planned */
    size_t memory;
    bool legal, fits, trains; /* plan_trains */
    char why[PLAN_TEXT];      /* not */
};

struct search {
    const struct config *config;  /* borrowed */
    struct search_result *result; /* [count] owned: those that fit by speed, then the others by
                                     memory, then those that cannot be */
    int64_t count, fitting, legal;
    int64_t room; /* of result */
    int64_t
        ranks_per_node; /* 0, or where another layout would have others, as the config's would */
    int64_t left; /* not planned: they need more memory than one of `result` that does not fit */
};

/* stages: pipelines too. Errors: STATUS_RESOURCE. */
enum status search_run(struct search *search, const struct config *config,
                       const struct hardware *hardware, bool stages)
    __attribute__((warn_unused_result));
void search_free(struct search *search);
/* key=value ... that make a config the result's. */
void search_overrides(const struct search *search, const struct search_result *result, char *out,
                      size_t bytes);
void search_print_text(const struct search *search, int64_t rows);
void search_print_json(const struct search *search);

#endif
