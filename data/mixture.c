#include "data/mixture.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/rng.h"

__extension__ typedef __int128 wide;

/* Weights in whole numbers of at most this: the least is told from none down to 1e-9. */
static const double MOST_SHARE = 1 << 30;
/* More samples than anything trains on. */
static const int64_t NO_LIMIT = (int64_t)1 << 52;

/* given[s] of the first `samples` samples of a segment. */
static void split(const int64_t *share, int64_t sources, int64_t samples, int64_t *given)
{
    int64_t rest = 0;
    for (int64_t s = 0; s < sources; s++) {
        rest += share[s];
    }
    for (int64_t s = 0; s < sources; s++) {
        const wide twice = 2 * (wide)samples * (wide)share[s] + (wide)rest;
        given[s] = share[s] == 0      ? 0
                   : share[s] == rest ? samples
                                      : (int64_t)(twice / (2 * (wide)rest));
        samples -= given[s];
        rest -= share[s];
    }
}

static int64_t split_one(const int64_t *share, int64_t sources, int64_t samples, int64_t source)
{
    int64_t given[MIXTURE_SOURCES];
    split(share, sources, samples, given);
    return given[source];
}

/* --- segments --- */

static int64_t sooner(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Samples that a source may give from its origin on. */
static int64_t most_of(const struct mixture_source *source)
{
    const struct loader *loader = &source->loader;
    const struct loader_place *at = &source->origin;
    int64_t most = NO_LIMIT;
    if (source->epochs > 0) {
        const int64_t whole = (int64_t)floor(source->epochs),
                      part = (int64_t)floor((source->epochs - (double)whole) *
                                            (double)loader->samples);
        const int64_t done = at->done / loader->sequence_length;
        const wide sum = at->epoch < whole
                             ? (wide)loader_left(loader, at) +
                                   (wide)(whole - 1 - at->epoch) * loader->samples + part
                         : at->epoch == whole ? part - done
                                              : 0;
        most = sum > NO_LIMIT ? NO_LIMIT : (int64_t)sum;
    }
    if (source->tokens > 0) {
        most = sooner(most, (source->tokens - at->tokens) / loader->sequence_length);
    }
    return most > 0 ? most : 0;
}

/* The most samples of a segment of at most `length` in which `source` gives no more than `most`. */
static int64_t reach(const int64_t *share, int64_t sources, int64_t source, int64_t most,
                     int64_t length)
{
    int64_t low = 0, high = length;
    while (low < high) {
        const int64_t middle = low + (high - low + 1) / 2;
        if (split_one(share, sources, middle, source) <= most) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

/* The shares of a stage among the sources that may still give: none: false. */
static bool share_out(const struct mixture *mixture, const double *weight, const int64_t *given,
                      const int64_t *most, int64_t *share)
{
    double largest = 0;
    for (int64_t s = 0; s < mixture->sources; s++) {
        largest = given[s] < most[s] && weight[s] > largest ? weight[s] : largest;
    }
    for (int64_t s = 0; s < mixture->sources; s++) {
        const bool gives = given[s] < most[s] && weight[s] > 0;
        const int64_t parts = gives ? llround(weight[s] / largest * MOST_SHARE) : 0;
        share[s] = gives && parts == 0 ? 1 : parts;
    }
    return largest > 0;
}

static void find_segments(struct mixture *mixture, const struct mixture_stage *stage,
                          int64_t stages)
{
    const int64_t sources = mixture->sources;
    int64_t most[MIXTURE_SOURCES], at = mixture->origin, now = 0;
    for (int64_t s = 0; s < sources; s++) {
        most[s] = most_of(&mixture->source[s]);
    }
    for (;; mixture->segments++) {
        int64_t *given = mixture->given + mixture->segments * sources,
                *share = mixture->share + mixture->segments * sources;
        while (now + 1 < stages && stage[now + 1].begin <= at) {
            now++;
        }
        mixture->begin[mixture->segments] = at;
        if (!share_out(mixture, stage[now].weight, given, most, share)) {
            mixture->end = at;
            return;
        }
        int64_t length = now + 1 < stages ? stage[now + 1].begin - at : NO_LIMIT;
        for (int64_t s = 0; s < sources; s++) {
            length = share[s] > 0 && most[s] < NO_LIMIT
                         ? reach(share, sources, s, most[s] - given[s], length)
                         : length;
        }
        if (length >= NO_LIMIT) {
            mixture->segments++;
            mixture->begin[mixture->segments] = mixture->end = INT64_MAX;
            return;
        }
        split(share, sources, length, given + sources);
        for (int64_t s = 0; s < sources; s++) {
            given[sources + s] += given[s];
        }
        at += length;
    }
}

enum status mixture_init(struct mixture *mixture, struct mixture_source *source, int64_t sources,
                         const struct mixture_stage *stage, int64_t stages, int64_t origin,
                         bool shuffle, uint64_t seed)
{
    const size_t most = (size_t)(sources + stages + 2), cells = most * (size_t)sources;
    assert(sources > 0 && sources <= MIXTURE_SOURCES);
    *mixture = (struct mixture){.source = source,
                                .sources = sources,
                                .shuffle = shuffle,
                                .key = rng_key(seed, "data_mixture"),
                                .origin = origin,
                                .begin = calloc(most, sizeof *mixture->begin),
                                .given = calloc(cells, sizeof *mixture->given),
                                .share = calloc(cells, sizeof *mixture->share)};
    if (mixture->begin == NULL || mixture->given == NULL || mixture->share == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for a mixture of %lld sources",
                           (long long)sources);
    }
    find_segments(mixture, stage, stages);
    return STATUS_OK;
}

enum status mixture_single(struct mixture *mixture, struct mixture_source *source,
                           const struct loader *loader)
{
    const struct mixture_stage all = {.weight = {1}};
    *source = (struct mixture_source){.loader = *loader, .origin = loader_start(loader)};
    return mixture_init(mixture, source, 1, &all, 1, 0, loader->shuffle, loader->seed);
}

void mixture_free(struct mixture *mixture)
{
    free(mixture->begin);
    free(mixture->given);
    free(mixture->share);
    *mixture = (struct mixture){0};
}

/* --- samples --- */

/* The last segment that begins at or before the sample. */
static int64_t segment_of(const struct mixture *mixture, int64_t position)
{
    int64_t segment = 0;
    while (segment + 1 < mixture->segments && mixture->begin[segment + 1] <= position) {
        segment++;
    }
    return segment;
}

/* Samples of every source among the first `count` of a segment; the source of the next one. */
static int64_t count_given(const struct mixture *mixture, int64_t segment, int64_t count,
                           int64_t *given)
{
    const int64_t sources = mixture->sources, *share = mixture->share + segment * sources;
    const int64_t block = count / MIXTURE_BLOCK, first = block * MIXTURE_BLOCK,
                  inside = count - first,
                  left = mixture->begin[segment + 1] - mixture->begin[segment] - first,
                  size = left < MIXTURE_BLOCK ? left : MIXTURE_BLOCK;
    const uint64_t key =
        rng_subkey(rng_subkey(mixture->key, (uint64_t)mixture->begin[segment]), (uint64_t)block);
    int64_t before[MIXTURE_SOURCES], plain[MIXTURE_BLOCK];
    split(share, sources, first, given);
    memcpy(before, given, (size_t)sources * sizeof *before);
    for (int64_t i = 0; i < size; i++) { /* who comes i-th in the block, without shuffle */
        int64_t after[MIXTURE_SOURCES];
        split(share, sources, first + i + 1, after);
        for (int64_t s = 0; s < sources; s++) {
            plain[i] = after[s] > before[s] ? s : plain[i];
        }
        memcpy(before, after, (size_t)sources * sizeof *before);
    }
    for (int64_t i = 0; i < inside; i++) {
        const uint64_t at =
            mixture->shuffle ? rng_permute(key, (uint64_t)i, (uint64_t)size) : (uint64_t)i;
        given[plain[at]]++;
    }
    const uint64_t next = inside >= size     ? 0
                          : mixture->shuffle ? rng_permute(key, (uint64_t)inside, (uint64_t)size)
                                             : (uint64_t)inside;
    return size > 0 ? plain[next] : 0;
}

/* The same from the origin on, of all samples before `position`. */
static int64_t count_all(const struct mixture *mixture, int64_t position, int64_t *given)
{
    assert(position >= mixture->origin && position <= mixture->end);
    if (mixture->sources == 1) {
        given[0] = position - mixture->origin;
        return 0;
    }
    const int64_t segment = segment_of(mixture, position),
                  *before = mixture->given + segment * mixture->sources;
    int64_t next = 0;
    memset(given, 0, (size_t)mixture->sources * sizeof *given);
    if (segment < mixture->segments) {
        next = count_given(mixture, segment, position - mixture->begin[segment], given);
    }
    for (int64_t s = 0; s < mixture->sources; s++) {
        given[s] += before[s];
    }
    return next;
}

void mixture_places(const struct mixture *mixture, int64_t position, struct loader_place *place)
{
    int64_t given[MIXTURE_SOURCES];
    (void)count_all(mixture, position, given);
    for (int64_t s = 0; s < mixture->sources; s++) {
        const struct mixture_source *source = &mixture->source[s];
        place[s] = loader_advance(&source->loader, &source->origin, given[s]);
    }
}

int64_t mixture_sample(const struct mixture *mixture, int64_t position, struct loader_place *place)
{
    int64_t given[MIXTURE_SOURCES];
    assert(position < mixture->end);
    const int64_t s = count_all(mixture, position, given);
    const struct mixture_source *source = &mixture->source[s];
    *place = loader_advance(&source->loader, &source->origin, given[s]);
    return s;
}

enum status mixture_status(const struct mixture *mixture)
{
    for (int64_t s = 0; s < mixture->sources; s++) {
        TRY(token_store_status(mixture->source[s].loader.store));
    }
    return STATUS_OK;
}

int64_t mixture_batch(const struct mixture *mixture, struct batch *batch, int64_t position,
                      int64_t count)
{
    int64_t labels = 0;
    for (int64_t i = 0; i < count; i++) {
        struct loader_place place;
        const int64_t s = mixture_sample(mixture, position + i, &place);
        labels += loader_row(&mixture->source[s].loader, &place, batch, i);
    }
    return labels;
}
