#include "trainer/sample.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/rng.h"

struct candidate {
    double weight; /* exp((logit - max) / temperature) */
    int32_t id;
};

static int by_weight(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->weight != y->weight) {
        return x->weight < y->weight ? 1 : -1;
    }
    return (x->id > y->id) - (x->id < y->id);
}

/* Cuts the sorted candidates to top_k and top_p; returns how many stay (at least one). */
static int64_t cut(const struct candidate *list, int64_t count,
                   const struct sample_options *options)
{
    int64_t kept = options->top_k > 0 && options->top_k < count ? options->top_k : count;
    double all = 0, sum = 0;
    for (int64_t i = 0; i < kept; i++) {
        all += list[i].weight;
    }
    for (int64_t i = 0; i < kept; i++) {
        sum += list[i].weight;
        if (sum >= options->top_p * all) {
            return i + 1;
        }
    }
    return kept;
}

static int32_t choose(struct candidate *list, const float *logits, int64_t vocab,
                      const struct sample_options *options, uint64_t index)
{
    int32_t best = 0;
    for (int32_t i = 1; i < vocab; i++) {
        best = logits[i] > logits[best] ? i : best;
    }
    if (options->temperature <= 0) {
        return best;
    }
    for (int32_t i = 0; i < vocab; i++) {
        const double gap = (double)logits[i] - (double)logits[best];
        list[i] = (struct candidate){.weight = exp(gap / options->temperature), .id = i};
    }
    qsort(list, (size_t)vocab, sizeof *list, by_weight);
    const int64_t kept = cut(list, vocab, options);
    double sum = 0;
    for (int64_t i = 0; i < kept; i++) {
        sum += list[i].weight;
    }
    double left = rng_uniform(rng_key(options->seed, "sample"), index) * sum;
    for (int64_t i = 0; i < kept; i++) {
        left -= list[i].weight;
        if (left < 0) {
            return list[i].id;
        }
    }
    return list[kept - 1].id;
}

int64_t sample_tokens(struct model *model, int32_t *ids, int64_t count, int64_t tokens,
                      const struct sample_options *options)
{
    const int64_t vocab = model->config->model.vocab_size, most = model->sequence;
    int32_t *arrays = calloc((size_t)(3 * most), sizeof *arrays);
    float *logits = malloc((size_t)vocab * sizeof *logits);
    struct candidate *list = malloc((size_t)vocab * sizeof *list);
    int64_t added = 0;
    assert(count >= 1 && arrays != NULL && logits != NULL && list != NULL);
    for (int64_t i = 0; i < most; i++) {
        arrays[i] = -1;                /* labels: none */
        arrays[most + i] = (int32_t)i; /* positions; `first` stays 0 */
    }
    while (added < tokens) {
        const int64_t length = count + added, seen = length < most ? length : most;
        const struct batch batch = {.ids = ids + length - seen,
                                    .labels = arrays,
                                    .positions = arrays + most,
                                    .first = arrays + 2 * most};
        model_logits(model, &batch, 1, seen, seen - 1, logits);
        const int32_t next = choose(list, logits, vocab, options, (uint64_t)added);
        if (next == options->eos_id) {
            break;
        }
        ids[length] = next;
        added++;
    }
    free(arrays);
    free(logits);
    free(list);
    return added;
}
