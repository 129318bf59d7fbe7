/* mixture: which sample of which source is global sample number i. Pure arithmetic on i, the
 * weights and the seed: every layout sees the same global batches, and nothing is remembered.
 *
 * The weights split the samples between the first source and the rest, these between the second
 * and the rest, and so on, each time to the nearest whole number: after any number of samples every
 * source has given its share to within about one sample for each source before it, and how many
 * that are is a closed form. Inside blocks of MIXTURE_BLOCK samples the sources come in a random
 * order (keyed by seed and block; not without shuffle); the samples of a source always come in the
 * source's own order, so that what is consumed of it is a prefix: one place.
 *
 * Weights change at given samples (stages), and where a source has given all it may (its epochs or
 * its tokens): it leaves, and the others share in proportion to their weights. Both are borders of
 * segments, found when the mixture starts, with the samples that each source has given before. The
 * data ends where no source with a weight is left.
 *
 * Everything counts from an origin: sample 0, or where the run was when its settings last changed,
 * with the places that the sources had there. That is the state of the data in a checkpoint.
 */
#ifndef DATA_MIXTURE_H
#define DATA_MIXTURE_H

#include "data/loader.h"

enum { MIXTURE_BLOCK = 64, MIXTURE_SOURCES = 64 };

/* A source as the settings have it. */
struct mixture_source {
    struct loader loader;
    double epochs;              /* it gives at most; 0: no limit */
    int64_t tokens;             /* it gives at most, over the whole run; 0: no limit */
    struct loader_place origin; /* where it stands at the origin */
};

/* From sample `begin` on (the first stage: from the origin), these weights, >= 0. */
struct mixture_stage {
    int64_t begin;
    double weight[MIXTURE_SOURCES];
};

struct mixture {
    struct mixture_source *source; /* [sources] borrowed; they stay where they are */
    int64_t sources;
    bool shuffle;
    uint64_t key;
    int64_t origin; /* the sample it counts from */
    int64_t end;    /* samples from here on do not exist; INT64_MAX: no end */
    int64_t segments;
    int64_t *begin; /* [segments + 1] owned: first sample of each, and `end` */
    int64_t *given; /* [segments, sources] owned: samples since the origin, before the segment */
    int64_t *share; /* [segments, sources] owned: weights in whole numbers */
};

/* Local. `stages` in order. Errors: STATUS_RESOURCE. Free it either way. */
enum status mixture_init(struct mixture *mixture, struct mixture_source *source, int64_t sources,
                         const struct mixture_stage *stage, int64_t stages, int64_t origin,
                         bool shuffle, uint64_t seed) __attribute__((warn_unused_result));
/* Local. All samples from one source, which is made of the loader and must stay. */
enum status mixture_single(struct mixture *mixture, struct mixture_source *source,
                           const struct loader *loader) __attribute__((warn_unused_result));
void mixture_free(struct mixture *mixture); /* accepts a zeroed one; may be called twice */

/* Where each source stands when the samples before `position` are consumed: place[sources].
 * origin <= position <= end. */
void mixture_places(const struct mixture *mixture, int64_t position, struct loader_place *place);
/* The source of sample `position` (below end), and its place there. */
int64_t mixture_sample(const struct mixture *mixture, int64_t position, struct loader_place *place);
/* Of all sources' files: token_store_status. */
enum status mixture_status(const struct mixture *mixture) __attribute__((warn_unused_result));
/* Fills samples position .. position+count-1; returns how many labels count. */
int64_t mixture_batch(const struct mixture *mixture, struct batch *batch, int64_t position,
                      int64_t count);

#endif
