#include "trainer/sample.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/rng.h"
#include "trainer/model/cache.h"

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

/* What sample_tokens works with; arrays of one element a sequence. */
struct work {
    struct cache cache;
    int64_t *start;  /* first token of the context */
    int32_t *length; /* tokens of the context in the cache; 0: none */
    int32_t *fresh;  /* cache_decode's lengths, */
    int32_t *last;   /* and its tokens */
    bool *done;
    float *logits; /* [sequences, V] */
    struct candidate *list;
};

static void work_free(struct work *work)
{
    void *const owned[] = {work->start, work->length, work->fresh, work->last,
                           work->done,  work->logits, work->list};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++) {
        free(owned[i]);
    }
    cache_free(&work->cache);
}

static enum status work_init(struct work *work, const struct model *model, int64_t count,
                             int64_t capacity)
{
    const size_t n = (size_t)count, vocab = (size_t)model->arch.vocab;
    *work = (struct work){.start = calloc(n, sizeof *work->start),
                          .length = calloc(n, sizeof *work->length),
                          .fresh = calloc(n, sizeof *work->fresh),
                          .last = calloc(n, sizeof *work->last),
                          .done = calloc(n, sizeof *work->done),
                          .logits = malloc(n * vocab * sizeof *work->logits),
                          .list = malloc(vocab * sizeof *work->list)};
    if (work->start == NULL || work->length == NULL || work->fresh == NULL || work->last == NULL ||
        work->done == NULL || work->logits == NULL || work->list == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for the logits of %lld sequences",
                           (long long)count);
    }
    return cache_init(&work->cache, model, count, capacity);
}

/* Logits behind the last token of every sequence that goes on. Cached contexts first: decoding
 * writes all rows of the logits. */
static void advance(struct model *model, struct work *work, const struct sample_sequence *sequences,
                    const struct sample_options *options)
{
    const int64_t vocab = model->arch.vocab, half = (options->context + 1) / 2;
    bool any = false;
    for (int64_t s = 0; s < work->cache.slots; s++) {
        while (sequences[s].count - work->start[s] > options->context) {
            work->start[s] += half;
            work->length[s] = 0;
        }
        const bool cached = !work->done[s] && work->length[s] > 0;
        work->fresh[s] = cached ? ++work->length[s] : 0;
        work->last[s] = sequences[s].ids[sequences[s].count - 1];
        any = any || cached;
    }
    if (any) {
        cache_decode(model, &work->cache, work->last, work->fresh, work->logits);
    }
    for (int64_t s = 0; s < work->cache.slots; s++) {
        if (!work->done[s] && work->fresh[s] == 0) {
            work->length[s] = (int32_t)(sequences[s].count - work->start[s]);
            cache_prefill(model, &work->cache, s, sequences[s].ids + work->start[s],
                          work->length[s], work->logits + s * vocab);
        }
    }
}

static void generate(struct model *model, struct work *work, struct sample_sequence *sequences,
                     int64_t tokens, const struct sample_options *options)
{
    const int64_t vocab = model->arch.vocab;
    int64_t left = work->cache.slots;
    for (int64_t added = 0; added < tokens && left > 0; added++) {
        advance(model, work, sequences, options);
        for (int64_t s = 0; s < work->cache.slots; s++) {
            if (work->done[s]) {
                continue;
            }
            const int32_t next =
                choose(work->list, work->logits + s * vocab, vocab, options, (uint64_t)added);
            if (next == options->eos_id) {
                work->done[s] = true;
                left--;
            } else {
                sequences[s].ids[sequences[s].count++] = next;
            }
        }
    }
}

enum status sample_tokens(struct model *model, struct sample_sequence *sequences, int64_t count,
                          int64_t tokens, const struct sample_options *options)
{
    struct work work;
    int64_t longest = 0;
    for (int64_t s = 0; s < count; s++) {
        assert(sequences[s].count >= 1);
        longest = sequences[s].count > longest ? sequences[s].count : longest;
    }
    assert(options->context >= 1 && options->context <= model->sequence);
    const int64_t most = longest + tokens,
                  capacity = most < options->context ? most : options->context;
    const enum status status =
        comm_agree(model->mesh->world, work_init(&work, model, count, capacity), NULL);
    if (status == STATUS_OK) {
        generate(model, &work, sequences, tokens, options);
    }
    work_free(&work);
    return status;
}
