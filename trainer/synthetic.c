#include "trainer/synthetic.h"

#include <stdlib.h>

#include "kernels/base/rng.h"

enum status synthetic_init(struct synthetic *synthetic, const struct config *config)
{
    const int64_t length = config->train.sequence_length, samples = 4 * config->train.global_batch;
    const int64_t count = samples * length + 1;
    const uint64_t key = rng_key(config->run.seed, "bench");
    *synthetic = (struct synthetic){.document = {0, count}};
    synthetic->tokens = malloc((size_t)count * sizeof *synthetic->tokens);
    if (synthetic->tokens == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for %lld tokens", (long long)count);
    }
    for (int64_t i = 0; i < count; i++) {
        synthetic->tokens[i] =
            (uint32_t)(rng_uniform(key, (uint64_t)i) * (double)config->model.vocab_size);
    }
    synthetic->store = (struct token_store){.tokens = count,
                                            .documents = 1,
                                            .vocab_size = config->model.vocab_size,
                                            .eos_id = -1,
                                            .width = 4,
                                            .token_data = synthetic->tokens,
                                            .document_offsets = synthetic->document};
    struct loader loader;
    TRY(loader_init(&loader, &synthetic->store, length, false, false, config->run.seed));
    return mixture_single(&synthetic->mixture, &synthetic->source, &loader);
}

void synthetic_free(struct synthetic *synthetic)
{
    mixture_free(&synthetic->mixture);
    free(synthetic->tokens);
    *synthetic = (struct synthetic){0};
}
