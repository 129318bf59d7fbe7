#include "trainer/sources.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/token_share.h"
#include "kernels/base/rng.h"
#include "trainer/fim_tokens.h"
#include "trainer/run_tokenizer.h"
#include "trainer/schedule.h"

/* Every source speaks of the same tokens, and the model knows them. */
static enum status check_vocabulary(const struct token_store *store,
                                    const struct token_store *first, const struct config *config)
{
    if (store->vocab_size > config->model.vocab_size) {
        return status_fail(
            STATUS_DATA,
            "%s: its tokens need a vocabulary of %lld, model.vocab_size is %lld: raise it or "
            "prepare the text with another tokenizer",
            store->path, (long long)store->vocab_size, (long long)config->model.vocab_size);
    }
    return token_store_match(first, store);
}

static double fim_rate(const struct config *config, int64_t source)
{
    const double own = config->data.train.item[source].fim;
    return own >= 0 ? own : config->data.fim.rate;
}

/* Reading a tokenizer takes a while: only where it is asked. */
static enum status find_fim(struct fim *fim, const struct config *config,
                            const struct token_store *store)
{
    struct tokenizer tokenizer = {0};
    const bool texts = fim_tokens_are_texts(config);
    enum status status =
        texts ? run_tokenizer_of_data(&tokenizer, store, config->model.vocab_size) : STATUS_OK;
    if (status == STATUS_USAGE) { /* ids from elsewhere: only numbers will do */
        tokenizer_close(&tokenizer);
        return fim_tokens_find(fim, config, NULL, store->path);
    }
    status = status == STATUS_OK
                 ? fim_tokens_find(fim, config, texts ? &tokenizer : NULL, store->path)
                 : status;
    tokenizer_close(&tokenizer);
    return status;
}

/* A limit that lets a source give no sample would leave it out without a word. */
static enum status check_limits(const struct mixture_source *source)
{
    const struct loader *loader = &source->loader;
    const bool epochs = source->epochs > 0 &&
                        source->epochs * (double)loader->samples<1, tokens = source->tokens> 0 &&
                        source->tokens < loader->sequence_length;
    return !epochs && !tokens
               ? STATUS_OK
               : status_fail(STATUS_USAGE,
                             "data.train: %s: its %s %.17g is less than one sample of %lld tokens: "
                             "raise it or leave the source out",
                             loader->store->path, epochs ? "epochs" : "tokens",
                             epochs ? source->epochs : (double)source->tokens,
                             (long long)loader->sequence_length);
}

static enum status set_up(struct sources *sources, const struct config *config, int64_t s)
{
    const struct config_source *said = &config->data.train.item[s];
    struct token_store *store = &sources->store[s];
    struct mixture_source *source = &sources->source[s];
    struct loader *loader = &source->loader;
    struct fim fim = {.parts = fim_parts(fim_rate(config, s))};
    TRY(check_vocabulary(store, &sources->store[0], config));
    if (config->data.packing == CONFIG_BEST_FIT) {
        const uint64_t key = rng_key(config->run.seed, "data_packing");
        TRY(packing_init(&sources->packing[s], store, config->train.sequence_length,
                         config->data.shuffle, rng_subkey(key, (uint64_t)s)));
        loader_init_packed(loader, &sources->packing[s], config->data.shuffle, config->run.seed);
    } else {
        TRY(loader_init(loader, store, config->train.sequence_length, config->data.shuffle,
                        config->data.mask_documents, config->run.seed));
    }
    loader->number = (uint64_t)s;
    if (fim.parts > 0) {
        TRY(find_fim(&fim, config, store));
        loader_set_fim(loader, &fim);
    }
    source->epochs = said->epochs;
    source->tokens = (int64_t)said->tokens;
    TRY(check_limits(source));
    source->origin = loader_start(loader);
    data_state_path(sources->origin.source[s].path, said->path);
    sources->origin.source[s].origin = sources->origin.source[s].now = source->origin;
    TRY(data_fingerprint(store, &sources->origin.source[s].fingerprint));
    return token_store_contents(store, &sources->origin.source[s].contents);
}

/* Sample at which stage `stage` begins; the first one holds from the origin on. */
static int64_t stage_begin(const struct config *config, const struct data_state *origin,
                           int64_t stage)
{
    const struct config_reals *tokens = &config->data.stages.tokens,
                              *steps = &config->data.stages.steps;
    const int64_t length = config->train.sequence_length;
    if (stage == 0) {
        return origin->position;
    }
    if (tokens->count > 0) {
        const int64_t left = (int64_t)tokens->item[stage - 1] - origin->tokens;
        return origin->position + (left > 0 ? left / length + (left % length != 0) : 0);
    }
    const int64_t left = (int64_t)steps->item[stage - 1] - origin->step;
    return left > 0 ? schedule_position(config, origin->position, left) : origin->position;
}

static enum status mix(struct sources *sources, const struct config *config)
{
    const int64_t stages = 1 + config->data.stages.tokens.count + config->data.stages.steps.count;
    struct mixture_stage *stage = calloc((size_t)stages, sizeof *stage);
    if (stage == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for the stages of the data");
    }
    for (int64_t i = 0; i < stages; i++) {
        stage[i].begin = stage_begin(config, &sources->origin, i);
        for (int64_t s = 0; s < sources->count; s++) {
            const struct config_source *said = &config->data.train.item[s];
            stage[i].weight[s] = said->tokens > 0    ? said->tokens
                                 : said->weights > 1 ? said->weight[i]
                                                     : said->weight[0];
        }
    }
    mixture_free(&sources->mixture);
    const enum status status =
        mixture_init(&sources->mixture, sources->source, sources->count, stage, stages,
                     sources->origin.position, config->data.shuffle, config->run.seed);
    free(stage);
    return status;
}

/* What one rank meets every rank hears of, before the next file is opened by all. */
static enum status open_one(struct sources *sources, const struct config *config, int64_t s,
                            struct comm *world)
{
    TRY(token_share_open(&sources->store[s], config->data.train.item[s].path, world));
    return comm_agree(world, set_up(sources, config, s), NULL);
}

enum status sources_open(struct sources *sources, const struct config *config, struct comm *world)
{
    const int64_t count = config->data.train.count;
    *sources = (struct sources){0};
    if (count == 0) {
        return status_fail(
            STATUS_USAGE,
            "key 'data.train': missing: name a token file (switchyard prepare makes one)");
    }
    sources->store = calloc((size_t)count, sizeof *sources->store);
    sources->packing = calloc((size_t)count, sizeof *sources->packing);
    sources->source = calloc((size_t)count, sizeof *sources->source);
    const bool room = sources->store != NULL && sources->packing != NULL && sources->source != NULL;
    TRY(comm_agree(
        world,
        room ? STATUS_OK
             : status_fail(STATUS_RESOURCE, "out of memory for %lld token files", (long long)count),
        NULL));
    for (int64_t s = 0; s < count; s++) {
        sources->count = sources->origin.count = s + 1;
        TRY(open_one(sources, config, s, world));
    }
    return comm_agree(world, mix(sources, config), NULL);
}

void sources_close(struct sources *sources)
{
    for (int64_t s = 0; s < sources->count; s++) {
        packing_free(&sources->packing[s]);
        token_store_close(&sources->store[s]);
    }
    mixture_free(&sources->mixture);
    free(sources->store);
    free(sources->packing);
    free(sources->source);
    *sources = (struct sources){0};
}

enum status sources_start(struct sources *sources, const struct config *config,
                          const struct data_state *origin)
{
    sources->origin.step = origin->step;
    sources->origin.position = origin->position;
    sources->origin.tokens = origin->tokens;
    for (int64_t s = 0; s < sources->count; s++) {
        sources->origin.source[s].origin = sources->source[s].origin = origin->source[s].origin;
    }
    return mix(sources, config);
}

enum status sources_check(const struct sources *sources, const struct config *config, int64_t step,
                          int64_t position)
{
    const int64_t left = config->run.steps - step, end = sources->mixture.end;
    const int64_t needed = left > 0 ? schedule_position(config, position, left) : position;
    return needed <= end
               ? STATUS_OK
               : status_fail(STATUS_USAGE,
                             "data.train: its limits (epochs, tokens, weights of 0) end the data "
                             "after %lld samples, run.steps %lld needs %lld: raise them or lower "
                             "run.steps",
                             (long long)end, (long long)config->run.steps, (long long)needed);
}

void sources_state(const struct sources *sources, int64_t position, struct data_state *state)
{
    struct loader_place place[MIXTURE_SOURCES];
    *state = sources->origin;
    mixture_places(&sources->mixture, position, place);
    for (int64_t s = 0; s < sources->count; s++) {
        state->source[s].now = place[s];
    }
}

int64_t sources_samples(const struct sources *sources)
{
    int64_t samples = 0;
    for (int64_t s = 0; s < sources->count; s++) {
        samples += sources->source[s].loader.samples;
    }
    return samples;
}
