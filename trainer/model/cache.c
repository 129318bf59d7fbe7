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
    const int64_t most = cache->slots > cache->capacity ? cache->slots : cache->capacity;
    const size_t row = (size_t)(cache->slots * cache->capacity) * dtype_bytes(model->act);
    int32_t **const arrays[] = {&cache->ids, &cache->positions, &cache->zeros, &cache->row};
    for (int64_t l = 0; l < arch->layers; l++) {
        cache->layer[l].k = arena_alloc(&cache->arena, (size_t)k * row);
        cache->layer[l].v = arena_alloc(&cache->arena, (size_t)v * row);
    }
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        *arrays[i] = arena_alloc(&cache->arena, (size_t)most * sizeof(int32_t));
    }
}

enum status cache_init(struct cache *cache, const struct model *model, int64_t slots,
                       int64_t capacity)
{
    assert(slots <= model->sequence && capacity <= model->sequence);
    *cache = (struct cache){.slots = slots, .capacity = capacity};
    if (slots > INT32_MAX / capacity) {
        return status_fail(STATUS_RESOURCE,
                           "a cache of %lld sequences of %lld tokens is too large: give fewer "
                           "prompts or a smaller train.sequence_length",
                           (long long)slots, (long long)capacity);
    }
    cache->layer = calloc((size_t)model->arch.layers, sizeof *cache->layer);
    if (cache->layer == NULL) {
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
    arena_free(&cache->arena);
    *cache = (struct cache){0};
}

static void run(struct model *model, struct cache *cache, int64_t tokens, const int32_t *lengths,
                int64_t wanted, float *logits)
{
    const struct batch batch = {
        .ids = cache->ids, .positions = cache->positions, .first = cache->zeros};
    const struct block_call call = {
        .batch = &batch, .count = 1, .sequence = tokens, .cache = cache, .lengths = lengths};
    model_forward(model, &call, tokens - wanted, wanted, logits);
}

void cache_prefill(struct model *model, struct cache *cache, int64_t slot, const int32_t *ids,
                   int64_t count, float *logits)
{
    assert(count >= 1 && count <= cache->capacity && slot < cache->slots);
    memcpy(cache->ids, ids, (size_t)count * sizeof *ids);
    for (int64_t i = 0; i < count; i++) {
        cache->positions[i] = (int32_t)i;
        cache->row[i] = (int32_t)(slot * cache->capacity + i);
    }
    run(model, cache, count, NULL, 1, logits);
}

void cache_decode(struct model *model, struct cache *cache, const int32_t *ids,
                  const int32_t *lengths, float *logits)
{
    for (int64_t s = 0; s < cache->slots; s++) {
        const bool rests = lengths[s] == 0;
        assert(lengths[s] <= cache->capacity);
        cache->ids[s] = rests ? 0 : ids[s];
        cache->positions[s] = rests ? 0 : lengths[s] - 1;
        cache->row[s] = rests ? -1 : (int32_t)(s * cache->capacity + lengths[s] - 1);
    }
    run(model, cache, cache->slots, lengths, cache->slots, logits);
}
