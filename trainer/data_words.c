#include "trainer/data_words.h"

/* What a source does to its tokens, and what of them is not used. */
void data_words(const struct sources *data, struct metrics *metrics)
{
    for (int64_t s = 0; s < data->count; s++) {
        const struct row_packing *packing = &data->packing[s];
        const struct loader *loader = &data->source[s].loader;
        if (data->count > 1) {
            metrics_say(metrics, "data %lld: %s, %lld samples an epoch", (long long)s + 1,
                        data->store[s].path, (long long)loader->samples);
        }
        if (loader->packing != NULL) {
            metrics_say(metrics,
                        "%s: %lld documents packed into %lld rows, %.1f %% of them filled; %lld "
                        "longer than %lld tokens cut (%lld tokens not used), %lld of fewer than "
                        "two tokens left out",
                        data->store[s].path, (long long)data->store[s].documents,
                        (long long)packing->rows,
                        100.0 * (double)packing->used / (double)(packing->rows * packing->length),
                        (long long)packing->cut, (long long)packing->length + 1,
                        (long long)packing->cut_tokens, (long long)packing->empty);
        }
        if (loader->fim.parts > 0) {
            metrics_say(metrics,
                        "%s: %.4g %% of its documents with the middle to fill in (tokens %d %d %d)",
                        data->store[s].path,
                        100.0 * (double)loader->fim.parts / (double)fim_parts(1),
                        loader->fim.prefix, loader->fim.suffix, loader->fim.middle);
        }
    }
}
