/* sources: the training data of a run: its token files, opened and checked against the config and
 * each other, their mixture, and where the run stands in it.
 */
#ifndef TRAINER_SOURCES_H
#define TRAINER_SOURCES_H

#include "data/mixture.h"
#include "parallel/comm.h"
#include "trainer/config/config.h"
#include "trainer/data_state.h"

struct sources {
    int64_t count;
    struct token_store *store;     /* [count] owned */
    struct row_packing *packing;   /* [count] owned; zeroed without data.packing best_fit */
    struct mixture_source *source; /* [count] owned */
    struct mixture mixture;
    struct data_state origin; /* what the mixture counts from; its `now` is not kept up */
};

/* Opens every file; the mixture starts at sample 0. Collective over `world`. Errors, the same on
 * every rank: STATUS_USAGE (no file, or a
 * fill-in-the-middle token that is not there), STATUS_DATA (file; vocabularies that differ from
 * each other or exceed the model's; a file of less than one sample), STATUS_IO, STATUS_RESOURCE. */
enum status sources_open(struct sources *sources, const struct config *config, struct comm *world)
    __attribute__((warn_unused_result));
void sources_close(struct sources *sources); /* accepts a zeroed one; may be called twice */

/* Local. The mixture counts from `origin` (its sources are these ones) from now on. */
enum status sources_start(struct sources *sources, const struct config *config,
                          const struct data_state *origin) __attribute__((warn_unused_result));
/* Local. Whether there are samples for the run's steps behind `step`, at `position`. Errors:
 * STATUS_USAGE. */
enum status sources_check(const struct sources *sources, const struct config *config, int64_t step,
                          int64_t position) __attribute__((warn_unused_result));
/* What a checkpoint at `position` says. */
void sources_state(const struct sources *sources, int64_t position, struct data_state *state);
/* Samples of one epoch of every source. */
int64_t sources_samples(const struct sources *sources);

#endif
