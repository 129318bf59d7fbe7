/* loader: which sample belongs to which micro-batch of which step. Pure arithmetic over
 * memory-mapped files.
 *
 * A source of N tokens has floor(N/T) samples; sample i is tokens [i*T, (i+1)*T) as inputs, its
 * labels the tokens one further on; a label beyond the last token does not count (-1), nor one with
 * loss_mask 0. Samples in order of a counter-based permutation per epoch (rng_permute, keyed by
 * seed and epoch), or in file order without shuffle. Position is one number, the samples consumed
 * so far, the same for every layout.
 */
#ifndef DATA_LOADER_H
#define DATA_LOADER_H

#include "data/token_store.h"

struct loader {
    const struct token_store *store; /* borrowed */
    int64_t sequence_length;         /* T */
    int64_t samples;                 /* in one epoch: floor(tokens / T) */
    bool shuffle;
    bool mask_documents;
    uint64_t seed;
};

/* One micro-batch, caller's arrays of count*T. */
struct batch {
    int32_t *ids;       /* [count, T] inputs */
    int32_t *labels;    /* [count, T] next token, or -1: not counted */
    int32_t *positions; /* [count, T] 0.. ; restart at documents with mask_documents */
    int32_t
        *first; /* [count, T] first visible position in the sample; all 0 without mask_documents */
};

/* The arrays of `tokens` = count*T tokens one after another in storage[4 * tokens]. */
struct batch batch_view(int32_t *storage, int64_t tokens);

/* Errors: STATUS_DATA when the file holds no whole sample (names T and the tokens). */
enum status loader_init(struct loader *loader, const struct token_store *store,
                        int64_t sequence_length, bool shuffle, bool mask_documents, uint64_t seed)
    __attribute__((warn_unused_result));
/* Sample index in the file of global sample number `position` (0, 1, 2, ... over all epochs). */
int64_t loader_sample(const struct loader *loader, int64_t position);
/* Fills samples position .. position+count-1; returns how many labels count. */
int64_t loader_batch(const struct loader *loader, struct batch *batch, int64_t position,
                     int64_t count);

#endif
