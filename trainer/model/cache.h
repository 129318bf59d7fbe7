/* cache: keys and values of the tokens so far, so that a new token costs one token's work.
 *
 * Grouped queries keep each token's rotated keys and its values; latent attention keeps the normed
 * latent and the rotated shared key, from which the absorbed form attends (DeepSeek-V2, section
 * 2.1). A sequence fills its slot by one forward of its context, then token by token. A sequence's
 * logits do not depend on the other slots.
 */
#ifndef TRAINER_CACHE_H
#define TRAINER_CACHE_H

#include "trainer/model/model.h"

struct cache_layer {
    void *k, *v; /* [slots, capacity, G*D] each; latent: [slots, capacity, r] and rope_dim */
};

struct cache {
    int64_t slots, capacity; /* sequences; tokens of each */
    struct arena arena;
    struct cache_layer *layer; /* [layers] owned */
    /* of the call that runs, [most = max(slots, capacity)], in the arena: */
    int64_t most;
    int32_t *ids, *positions, *row, *lengths, *zeros;
    int32_t *host; /* [4 most] owned: ids, positions, row, lengths on the host; row: where each
                      token of the call goes: slot * capacity + position; -1: nowhere */
    float *logits; /* [slots, V] */
};

/* Local. slots and capacity at most model->sequence. Errors: STATUS_RESOURCE. */
enum status cache_init(struct cache *cache, const struct model *model, int64_t slots,
                       int64_t capacity) __attribute__((warn_unused_result));
void cache_free(struct cache *cache); /* accepts a zeroed one */

/* ids, lengths and logits are host memory.
 * Collective over ep. Forward of the whole context ids[count], which replaces what `slot` held;
 * logits f32 [V] behind its last token. */
void cache_prefill(struct model *model, struct cache *cache, int64_t slot, const int32_t *ids,
                   int64_t count, float *logits);
/* Collective over ep. One more token, ids[s], for every slot with lengths[s] > 0, its context's
 * length with this token; slots of length 0 rest. logits f32 [slots,V]; of resting slots without
 * meaning. */
void cache_decode(struct model *model, struct cache *cache, const int32_t *ids,
                  const int32_t *lengths, float *logits);

#endif
