#include "trainer/model/cache.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/model/block.h"

static void layout(struct cache *cache, const struct model *model)
{
    const struct architecture *arch = &model->arch;
    const bool latent = arch->kv_rank > 0;
    const int64_t k = latent ? arch->kv_rank : arch->kv_heads * arch->qk_dim,
                  v = latent ? arch->rope_dim : arch->kv_heads * arch->v_dim;
    const size_t row = (size_t)(cache->slots * cache->capacity) * dtype_bytes(model->act),
                 most = (size_t)cache->most;
    for (int64_t l = 0; l < arch->layers; l++) {
        cache->layer[l].k = arena_alloc(&cache->arena, (size_t)k * row);
        cache->layer[l].v = arena_alloc(&cache->arena, (size_t)v * row);
    }
    int32_t **const arrays[] = {&cache->ids, &cache->positions, &cache->row, &cache->lengths,
                                &cache->zeros};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        *arrays[i] = arena_alloc(&cache->arena, most * sizeof(int32_t));
    }
    cache->logits =
        arena_alloc(&cache->arena, (size_t)(cache->slots * arch->vocab) * sizeof(float));
}

enum status cache_init(struct cache *cache, const struct model *model, int64_t slots,
                       int64_t capacity)
{
    assert(slots <= model->sequence && capacity <= model->sequence);
    *cache = (struct cache){.slots = slots,
                            .capacity = capacity,
                            .most = slots > capacity ? slots : capacity,
                            .arena = model_arena(model)};
    if (slots > INT32_MAX / capacity) {
        return status_fail(STATUS_RESOURCE,
                           "a cache of %lld sequences of %lld tokens is too large: give fewer "
                           "prompts or a smaller train.sequence_length",
                           (long long)slots, (long long)capacity);
    }
    cache->layer = calloc((size_t)model->arch.layers, sizeof *cache->layer);
    cache->host = calloc((size_t)(4 * cache->most), sizeof *cache->host);
    if (cache->layer == NULL || cache->host == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for the caches of %lld layers",
                           (long long)model->arch.layers);
    }
    layout(cache, model);
    TRY(arena_reserve(&cache->arena, "the key/value cache"));
    layout(cache, model);
    return STATUS_OK;
}

void cache_free(struct cache *cache)
{
    free(cache->layer);
    free(cache->host);
    arena_free(&cache->arena);
    *cache = (struct cache){0};
}

/* `decoding`: the tokens are one of each slot. */
static void run(struct model *model, struct cache *cache, int64_t tokens, bool decoding,
                float *logits)
{
    const struct ops *ops = model->ops;
    const int64_t wanted = decoding ? tokens : 1;
    int32_t *const arrays[] = {cache->ids, cache->positions, cache->row, cache->lengths};
    const struct batch batch = {
        .ids = cache->ids, .positions = cache->positions, .first = cache->zeros};
    const struct block_call call = {.batch = &batch,
                                    .count = 1,
                                    .sequence = tokens,
                                    .cache = cache,
                                    .lengths = decoding ? cache->lengths : NULL};
    for (int64_t i = 0; i < (decoding ? 4 : 3); i++) {
        ops->upload(model->device, arrays[i], cache->host + i * cache->most,
                    (size_t)tokens * sizeof *cache->host);
    }
    model_forward(model, &call, tokens - wanted, wanted, cache->logits);
    ops->download(model->device, logits, cache->logits,
                  (size_t)(wanted * model->arch.vocab) * sizeof *logits);
}

void cache_prefill(struct model *model, struct cache *cache, int64_t slot, const int32_t *ids,
                   int64_t count, float *logits)
{
    int32_t *positions = cache->host + cache->most, *row = positions + cache->most;
    assert(count >= 1 && count <= cache->capacity && slot < cache->slots);
    memcpy(cache->host, ids, (size_t)count * sizeof *ids);
    for (int64_t i = 0; i < count; i++) {
        positions[i] = (int32_t)i;
        row[i] = (int32_t)(slot * cache->capacity + i);
    }
    run(model, cache, count, false, logits);
}

void cache_decode(struct model *model, struct cache *cache, const int32_t *ids,
                  const int32_t *lengths, float *logits)
{
    int32_t *positions = cache->host + cache->most, *row = positions + cache->most,
            *held = row + cache->most;
    for (int64_t s = 0; s < cache->slots; s++) {
        const bool rests = lengths[s] == 0;
        assert(lengths[s] <= cache->capacity);
        cache->host[s] = rests ? 0 : ids[s];
        positions[s] = rests ? 0 : lengths[s] - 1;
        row[s] = rests ? -1 : (int32_t)(s * cache->capacity + lengths[s] - 1);
        held[s] = lengths[s];
    }
    run(model, cache, cache->slots, true, logits);
}
