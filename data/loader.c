#include "data/loader.h"

#include "kernels/base/rng.h"

struct batch batch_view(int32_t *storage, int64_t tokens)
{
    return (struct batch){.ids = storage,
                          .labels = storage + tokens,
                          .positions = storage + 2 * tokens,
                          .first = storage + 3 * tokens};
}

enum status loader_init(struct loader *loader, const struct token_store *store,
                        int64_t sequence_length, bool shuffle, bool mask_documents, uint64_t seed)
{
    *loader = (struct loader){.store = store,
                              .sequence_length = sequence_length,
                              .samples = store->tokens / sequence_length,
                              .shuffle = shuffle,
                              .mask_documents = mask_documents,
                              .seed = seed};
    if (loader->samples == 0) {
        return status_fail(
            STATUS_DATA,
            "%s: %lld tokens hold no sample of %lld: lower train.sequence_length or prepare more "
            "text",
            store->path, (long long)store->tokens, (long long)sequence_length);
    }
    return STATUS_OK;
}

int64_t loader_sample(const struct loader *loader, int64_t position)
{
    const int64_t epoch = position / loader->samples, at = position % loader->samples;
    if (!loader->shuffle) {
        return at;
    }
    const uint64_t key = rng_subkey(rng_key(loader->seed, "data_order"), (uint64_t)epoch);
    return (int64_t)rng_permute(key, (uint64_t)at, (uint64_t)loader->samples);
}

/* The next token counts as a label: it exists, its mask is set, and it is in the same document
 * where that matters. */
static int32_t label(const struct loader *loader, int64_t next, int64_t document_end)
{
    const struct token_store *store = loader->store;
    const bool counts = next < store->tokens &&
                        (store->loss_mask == NULL || store->loss_mask[next] != 0) &&
                        (!loader->mask_documents || next < document_end);
    return counts ? (int32_t)token_store_get(store, next) : -1;
}

static int64_t fill(const struct loader *loader, struct batch *batch, int64_t at, int64_t sample)
{
    const struct token_store *store = loader->store;
    const int64_t begin = sample * loader->sequence_length;
    int64_t document = token_store_document(store, begin), start = 0, labels = 0;
    for (int64_t t = 0; t < loader->sequence_length; t++) {
        const int64_t token = begin + t;
        while (document + 1 < store->documents && token >= store->document_offsets[document + 1]) {
            document++;
            start =
                token >= store->document_offsets[document] && loader->mask_documents ? t : start;
        }
        batch->ids[at + t] = (int32_t)token_store_get(store, token);
        batch->labels[at + t] = label(loader, token + 1, store->document_offsets[document + 1]);
        batch->positions[at + t] = (int32_t)(t - start);
        batch->first[at + t] = (int32_t)start;
        labels += batch->labels[at + t] >= 0;
    }
    return labels;
}

int64_t loader_batch(const struct loader *loader, struct batch *batch, int64_t position,
                     int64_t count)
{
    int64_t labels = 0;
    for (int64_t i = 0; i < count; i++) {
        labels +=
            fill(loader, batch, i * loader->sequence_length, loader_sample(loader, position + i));
    }
    return labels;
}
