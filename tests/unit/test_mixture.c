/* mixtures: every token of every epoch exactly once, whatever stops, ranks, batches, lengths of
 * samples and seeds come in between; shares, stages and limits; the thread that makes batches ahead
 * makes the same ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "data/feed.h"
#include "kernels/base/rng.h"

enum { SOURCES = 3, MOST = 8192, EPOCHS = 3 };

/* Token files in memory whose tokens are all different: id = source * MOST + index. */
struct world {
    struct token_store store[SOURCES];
    struct mixture_source source[SOURCES];
    struct mixture mixture;
    struct mixture_stage stage[3];
    int64_t stages;
    uint32_t ids[SOURCES][MOST];
    int64_t offsets[SOURCES][MOST + 1];
};

static const int64_t lengths[SOURCES] = {5003, 1711, 333};
static const double weights[SOURCES] = {0.5, 0.3, 0.2};

static uint32_t draw(uint64_t key, uint64_t index, uint32_t below)
{
    uint32_t bits[4];
    rng_bits(key, index, bits);
    return bits[0] % below;
}

static void make_stores(struct world *world)
{
    mixture_free(&world->mixture);
    memset(world, 0, sizeof *world);
    world->stages = 1;
    for (int s = 0; s < SOURCES; s++) {
        int64_t documents = 0;
        for (int64_t at = 0; at < lengths[s]; documents++) {
            at += draw(5 + (uint64_t)s, (uint64_t)documents, 90);
            world->offsets[s][documents + 1] = at < lengths[s] ? at : lengths[s];
        }
        for (int64_t i = 0; i < lengths[s]; i++) {
            world->ids[s][i] = (uint32_t)(s * MOST + i);
        }
        world->stage[0].weight[s] = weights[s];
        world->store[s] = (struct token_store){.path = (char *)(uintptr_t) "memory",
                                               .tokens = lengths[s],
                                               .documents = documents,
                                               .vocab_size = SOURCES * MOST + 3,
                                               .eos_id = -1,
                                               .width = 4,
                                               .token_data = world->ids[s],
                                               .document_offsets = world->offsets[s]};
    }
}

/* How a run, or a part of one, reads its data. */
struct settings {
    int64_t length, batch, micro;
    int ranks;
    bool shuffle;
    uint64_t seed;
    double fim;
    double epochs;
    const double *weights; /* [SOURCES], or NULL: as they are */
};

static void set_loaders(struct world *world, const struct settings *settings)
{
    for (int s = 0; s < SOURCES; s++) {
        struct loader *loader = &world->source[s].loader;
        const struct fim fim = {.parts = fim_parts(settings->fim),
                                .prefix = SOURCES * MOST,
                                .middle = SOURCES * MOST + 1,
                                .suffix = SOURCES * MOST + 2};
        assert_int_equal(loader_init(loader, &world->store[s], settings->length, settings->shuffle,
                                     false, settings->seed),
                         STATUS_OK);
        loader->number = (uint64_t)s;
        loader_set_fim(loader, &fim);
        world->source[s].epochs = settings->epochs;
    }
}

static void mix(struct world *world, const struct settings *settings, int64_t origin)
{
    mixture_free(&world->mixture);
    for (int s = 0; s < SOURCES && settings->weights != NULL; s++) {
        world->stage[0].weight[s] = settings->weights[s];
    }
    assert_int_equal(mixture_init(&world->mixture, world->source, SOURCES, world->stage,
                                  world->stages, origin, settings->shuffle, settings->seed),
                     STATUS_OK);
}

static void start(struct world *world, const struct settings *settings)
{
    set_loaders(world, settings);
    for (int s = 0; s < SOURCES; s++) {
        world->source[s].origin = loader_start(&world->source[s].loader);
    }
    mix(world, settings, 0);
}

/* Goes on from `position` with other settings, as trainer/resume.c does. */
static int64_t change(struct world *world, const struct settings *from, const struct settings *to,
                      int64_t position)
{
    struct loader_place place[SOURCES];
    const int64_t at = (position * from->length + to->length - 1) / to->length;
    mixture_places(&world->mixture, position, place);
    set_loaders(world, to);
    for (int s = 0; s < SOURCES; s++) {
        assert_true(loader_adopt(&world->source[s].loader, &place[s]));
        world->source[s].origin = place[s];
    }
    mix(world, to, at);
    return at;
}

/* Times that each token was an input. */
struct tally {
    int32_t seen[SOURCES * MOST + 3];
    int64_t tokens;
};

/* The global batch at `position`, rank by rank, through the feeds of all ranks: rows in order into
 * out[batch * T]. */
static void read_batch(struct feed *feeds, const struct settings *settings, int64_t position,
                       int32_t *out)
{
    const int64_t units = settings->batch / settings->micro, own = units / settings->ranks,
                  tokens = settings->micro * settings->length;
    for (int r = 0; r < settings->ranks; r++) {
        int64_t labels = 0;
        const struct batch *batches = NULL;
        assert_int_equal(feed_take(&feeds[r], position, own, &batches, &labels), STATUS_OK);
        assert_true(labels > 0);
        for (int64_t i = 0; i < own; i++) {
            memcpy(out + (i * settings->ranks + r) * tokens, batches[i].ids,
                   (size_t)tokens * sizeof *out);
        }
        if (position + 2 * settings->batch <= feeds[r].mixture->end) {
            feed_prepare(&feeds[r], position + settings->batch, own);
        }
    }
}

enum { MOST_BATCH = 64 * 64, MOST_RANKS = 4 };

/* Reads whole global batches until `until` or the end of the data; returns the position. `record`:
 * NULL, or where rows go. */
static int64_t consume(struct world *world, const struct settings *settings, int64_t position,
                       int64_t until, struct tally *tally, int32_t *record)
{
    static int32_t rows[MOST_BATCH];
    struct feed feeds[MOST_RANKS] = {0};
    const int64_t own = settings->batch / settings->micro / settings->ranks,
                  count = settings->batch * settings->length;
    assert_true(count <= MOST_BATCH);
    for (int r = 0; r < settings->ranks; r++) {
        assert_int_equal(feed_open(&feeds[r], &world->mixture, settings->micro, settings->length, r,
                                   settings->ranks, own),
                         STATUS_OK);
    }
    while (position < until && position + settings->batch <= world->mixture.end) {
        read_batch(feeds, settings, position, rows);
        for (int64_t i = 0; i < count && tally != NULL; i++) {
            tally->seen[rows[i]]++;
            tally->tokens++;
        }
        if (record != NULL) {
            memcpy(record, rows, (size_t)count * sizeof *record);
            record += count;
        }
        position += settings->batch;
    }
    for (int r = 0; r < settings->ranks; r++) {
        feed_close(&feeds[r]);
        feed_close(&feeds[r]);
    }
    return position;
}

/* In no epoch did a token come twice, and those of whole epochs that never came are fewer than
 * `missing` an epoch. */
static void expect_once(const struct world *world, const struct tally *tally, int64_t position,
                        int64_t missing)
{
    struct loader_place place[SOURCES];
    mixture_places(&world->mixture, position, place);
    for (int s = 0; s < SOURCES; s++) {
        int64_t absent = 0, given = 0;
        const int64_t begun = place[s].epoch + (place[s].done > 0 ? 1 : 0);
        for (int64_t i = 0; i < lengths[s]; i++) {
            const int32_t seen = tally->seen[s * MOST + i];
            assert_true(seen <= begun);
            absent += seen < place[s].epoch ? place[s].epoch - seen : 0;
            given += seen;
        }
        assert_true(given <= place[s].tokens);
        assert_true(absent <= place[s].epoch * missing);
    }
}

static void test_one_length(void **state)
{
    (void)state;
    static struct world world;
    static struct tally tally;
    const struct settings settings = {.length = 16,
                                      .batch = 1,
                                      .micro = 1,
                                      .ranks = 1,
                                      .shuffle = true,
                                      .seed = 3,
                                      .epochs = EPOCHS};
    make_stores(&world);
    start(&world, &settings);
    int64_t whole = 0;
    for (int s = 0; s < SOURCES; s++) {
        whole += EPOCHS * (lengths[s] / settings.length);
    }
    assert_int_equal(world.mixture.end, whole);
    const int64_t end = consume(&world, &settings, 0, INT64_MAX, &tally, NULL);
    assert_int_equal(end, whole);
    for (int s = 0; s < SOURCES; s++) { /* the plan, token by token */
        for (int64_t i = 0; i < lengths[s]; i++) {
            const bool in = i < lengths[s] / settings.length * settings.length;
            assert_int_equal(tally.seen[s * MOST + i], in ? EPOCHS : 0);
        }
    }
    mixture_free(&world.mixture);
}

/* The plan of one source, sample by sample, in plain arithmetic: an epoch ends where no whole
 * sample is left, where shuffled of the whole samples of the length it was begun with. */
struct plan {
    int64_t stream, done, epoch; /* stream 0: the next sample begins an epoch */
    int64_t left_out, tokens;    /* over all epochs that ended; in all samples */
};

static void plan_sample(struct plan *plan, int64_t tokens, int64_t length, bool shuffle)
{
    if (plan->stream > 0 && plan->stream - plan->done < length) {
        plan->left_out += tokens - plan->done;
        *plan = (struct plan){
            .epoch = plan->epoch + 1, .left_out = plan->left_out, .tokens = plan->tokens};
    }
    plan->stream = plan->stream > 0 ? plan->stream : shuffle ? tokens / length * length : tokens;
    plan->done += length;
    plan->tokens += length;
}

static void expect_plan(const struct tally *tally, struct plan *plan)
{
    int64_t tokens = 0;
    for (int s = 0; s < SOURCES; s++) {
        int64_t absent = 0;
        for (int64_t i = 0; i < lengths[s]; i++) {
            assert_true(tally->seen[s * MOST + i] <= EPOCHS);
            absent += EPOCHS - tally->seen[s * MOST + i];
        }
        plan_sample(&plan[s], lengths[s], lengths[s], false); /* none has room for a sample more */
        assert_int_equal(plan[s].epoch, EPOCHS);
        assert_int_equal(absent, plan[s].left_out);
        tokens += plan[s].tokens - lengths[s];
    }
    assert_int_equal(tokens, tally->tokens);
}

/* Parts of a run, each with other settings: the last goes on to the end of the data. Every source
 * gives EPOCHS of each of its tokens but for those that the plan leaves out, to the token. */
static void test_exactly_once(void **state)
{
    (void)state;
    enum { PARTS = 9 };
    static struct world world;
    static struct tally tally;
    static const double one_left_out[SOURCES] = {0.2, 0.8, 0}, other[SOURCES] = {0.1, 0.1, 0.8};
    static const struct settings parts[PARTS] = {
        {16, 8, 2, 1, true, 3, 0, EPOCHS, weights},
        {16, 8, 2, 4, true, 3, 0, EPOCHS, one_left_out},
        {16, 16, 2, 2, true, 3, 0, EPOCHS, weights},
        {24, 8, 2, 2, true, 3, 0, EPOCHS, other},
        {24, 24, 3, 4, true, 4, 0, EPOCHS, weights},
        {7, 16, 4, 4, false, 4, 0, EPOCHS, weights},
        {64, 4, 2, 2, true, 4, 0, EPOCHS, weights},
        {64, 4, 1, 4, true, 5, 0, EPOCHS, other},
        {16, 1, 1, 1, false, 3, 0, EPOCHS, weights},
    };
    for (uint64_t run = 0; run < 6; run++) {
        struct plan plan[SOURCES] = {0};
        int64_t position = 0;
        memset(&tally, 0, sizeof tally);
        make_stores(&world);
        start(&world, &parts[0]);
        for (int p = 0; p < PARTS; p++) {
            const int64_t steps = 1 + draw(run, (uint64_t)p, 60), from = position;
            const int64_t until = p + 1 < PARTS ? position + steps * parts[p].batch : INT64_MAX;
            struct loader_place place;
            position = consume(&world, &parts[p], position, until, &tally, NULL);
            expect_once(&world, &tally, position, 2 * 64);
            for (int64_t i = from; i < position; i++) {
                const int64_t s = mixture_sample(&world.mixture, i, &place);
                plan_sample(&plan[s], lengths[s], parts[p].length, parts[p].shuffle);
            }
            if (p + 1 < PARTS) {
                position = change(&world, &parts[p], &parts[p + 1], position);
            }
        }
        expect_plan(&tally, plan);
    }
    mixture_free(&world.mixture);
}

/* Another rate of fill-in-the-middle leaves the epoch under way as it is. */
static void test_exactly_once_with_fim(void **state)
{
    (void)state;
    static struct world world;
    static struct tally tally;
    const struct settings first = {16, 8, 2, 2, true, 3, 0.5, EPOCHS, NULL},
                          then = {24, 4, 2, 1, true, 5, 0.1, EPOCHS, NULL},
                          last = {24, 1, 1, 1, true, 5, 0, EPOCHS, NULL};
    make_stores(&world);
    start(&world, &first);
    int64_t position = consume(&world, &first, 0, 200, &tally, NULL);
    expect_once(&world, &tally, position, 16);
    position = change(&world, &first, &then, position);
    position = consume(&world, &then, position, position + 300, &tally, NULL);
    expect_once(&world, &tally, position, 64);
    position = change(&world, &then, &last, position);
    position = consume(&world, &last, position, INT64_MAX, &tally, NULL);
    expect_once(&world, &tally, position, 64);
    assert_true(tally.seen[SOURCES * MOST] > 50); /* there were middles to fill in */
    mixture_free(&world.mixture);
}

/* The same rows on every layout, and after a stop that changes nothing. */
static void test_same_everywhere(void **state)
{
    (void)state;
    enum { STEPS = 40, ROWS = STEPS * 8 * 16 };
    static struct world world;
    static int32_t straight[ROWS], other[ROWS];
    struct settings settings = {16, 8, 2, 1, true, 9, 0.3, 0, NULL};
    make_stores(&world);
    start(&world, &settings);
    assert_true(world.mixture.end == INT64_MAX);
    (void)consume(&world, &settings, 0, STEPS * 8, NULL, straight);
    for (int ranks = 2; ranks <= 4; ranks *= 2) {
        settings.ranks = ranks;
        int64_t position = consume(&world, &settings, 0, 13 * 8, NULL, other);
        mix(&world, &settings, 0); /* as a checkpoint's origin says */
        position = consume(&world, &settings, position, STEPS * 8, NULL, other + position * 16);
        assert_memory_equal(straight, other, sizeof straight);
    }
    settings.seed = 10;
    start(&world, &settings);
    (void)consume(&world, &settings, 0, STEPS * 8, NULL, other);
    assert_memory_not_equal(straight, other, sizeof straight);
    mixture_free(&world.mixture);
}

static void count_sources(const struct world *world, int64_t from, int64_t to,
                          int64_t given[SOURCES])
{
    struct loader_place place;
    memset(given, 0, SOURCES * sizeof *given);
    for (int64_t i = from; i < to; i++) {
        given[mixture_sample(&world->mixture, i, &place)]++;
    }
}

static void expect_same_place(const struct loader_place *a, const struct loader_place *b)
{
    assert_true(a->epoch == b->epoch && a->done == b->done && a->tokens == b->tokens);
    assert_true(a->run.order == b->run.order && a->run.cut == b->run.cut);
}

/* After every sample each source has its share to within two, and is where it is said to be. */
static void test_shares(void **state)
{
    (void)state;
    static struct world world;
    for (int shuffle = 0; shuffle < 2; shuffle++) {
        const struct settings settings = {16, 8, 2, 1, shuffle != 0, 9, 0, 0, NULL};
        int64_t given[SOURCES] = {0}, runs = 0, before = -1;
        struct loader_place place, places[SOURCES];
        make_stores(&world);
        start(&world, &settings);
        for (int64_t i = 0; i < 4000; i++) {
            const int64_t s = mixture_sample(&world.mixture, i, &place);
            mixture_places(&world.mixture, i, places);
            expect_same_place(&places[s], &place);
            assert_int_equal(place.tokens, given[s] * 16);
            given[s]++;
            runs += s == before;
            before = s;
            for (int k = 0; k < SOURCES && i % MIXTURE_BLOCK == MIXTURE_BLOCK - 1; k++) {
                const double gap = (double)given[k] - weights[k] * (double)(i + 1);
                assert_true(gap > -2 && gap < 2);
            }
        }
        assert_true(shuffle == 0 || runs > 1000); /* in no fixed turn: 38 % follow their like */
    }
    mixture_free(&world.mixture);
}

static void test_stages_and_limits(void **state)
{
    (void)state;
    static struct world world;
    const struct settings settings = {16, 8, 2, 1, true, 9, 0, 0, NULL};
    int64_t given[SOURCES];
    make_stores(&world);
    world.stages = 3;
    world.stage[1] = (struct mixture_stage){.begin = 100, .weight = {0, 1, 3}};
    world.stage[2] = (struct mixture_stage){.begin = 207, .weight = {1, 0, 1e-12}};
    start(&world, &settings);
    count_sources(&world, 0, 100, given);
    assert_true(given[0] == 50 && given[1] == 30 && given[2] == 20);
    count_sources(&world, 100, 207, given);
    assert_true(given[0] == 0 && given[1] + given[2] == 107 && given[1] >= 26 && given[1] <= 27);
    count_sources(&world, 207, 1207, given);
    assert_true(given[0] >= 999 && given[1] == 0);
    /* Source 2 has 20 samples an epoch: after 1.5 of them the others share in proportion. */
    world.stages = 1;
    set_loaders(&world, &settings);
    world.source[2].epochs = 1.5;
    mix(&world, &settings, 0);
    count_sources(&world, 0, 1000, given);
    assert_int_equal(given[2], 30);
    assert_true(given[0] >= 605 && given[0] <= 607); /* 75 of 150 + 850 * 5/8 */
    /* Budgets of tokens: 40 samples of source 0, 8 of source 1; a stage of weight 0 ends it. */
    world.source[2].epochs = 0;
    world.source[0].tokens = 40 * 16 + 15;
    world.source[1].tokens = 8 * 16;
    world.stage[0] = (struct mixture_stage){.weight = {5, 1, 0}};
    mix(&world, &settings, 0);
    assert_int_equal(world.mixture.end, 48);
    count_sources(&world, 0, 48, given);
    assert_true(given[0] == 40 && given[1] == 8);
    mixture_free(&world.mixture);
}

/* Numbers of a large run: no index, no overflow. */
static void test_large(void **state)
{
    (void)state;
    static struct world world;
    const struct settings settings = {1, 8, 2, 1, true, 9, 0, 0, NULL};
    const int64_t far = (int64_t)1 << 44;
    struct loader_place places[SOURCES], place;
    make_stores(&world);
    start(&world, &settings);
    mixture_places(&world.mixture, far, places);
    int64_t tokens = 0;
    for (int s = 0; s < SOURCES; s++) {
        const double gap = (double)places[s].tokens - weights[s] * (double)far;
        assert_true(gap > -20000 && gap < 20000); /* weights are kept to 1e-9 */
        tokens += places[s].tokens;
    }
    assert_int_equal(tokens, far);
    const int64_t s = mixture_sample(&world.mixture, far, &place);
    expect_same_place(&places[s], &place);
    mixture_free(&world.mixture);
}

/* What was made ahead and not asked for does no harm. */
static void test_feed_thrown_away(void **state)
{
    (void)state;
    static struct world world;
    const struct settings settings = {16, 8, 2, 1, true, 9, 0.2, 0, NULL};
    static int32_t storage[4 * 16 * 2];
    struct batch direct = batch_view(storage, 16 * 2);
    struct feed feed;
    make_stores(&world);
    start(&world, &settings);
    assert_int_equal(feed_open(&feed, &world.mixture, 2, 16, 1, 2, 3), STATUS_OK);
    for (int64_t i = 0; i < 300; i++) {
        const int64_t position = draw(1, (uint64_t)i, 5000), own = 1 + draw(2, (uint64_t)i, 3);
        int64_t labels = 0, expected = 0;
        const bool right = draw(3, (uint64_t)i, 3) > 0;
        feed_prepare(&feed, right ? position : position + 1, own);
        if (draw(4, (uint64_t)i, 8) == 0) {
            feed_prepare(&feed, position, own); /* twice */
        }
        const struct batch *batches = NULL;
        assert_int_equal(feed_take(&feed, position, own, &batches, &labels), STATUS_OK);
        for (int64_t b = 0; b < own; b++) {
            expected += mixture_batch(&world.mixture, &direct, position + (2 * b + 1) * 2, 2);
            assert_memory_equal(batches[b].ids, direct.ids, 16 * 2 * sizeof(int32_t));
            assert_memory_equal(batches[b].labels, direct.labels, 16 * 2 * sizeof(int32_t));
        }
        assert_int_equal(labels, expected);
    }
    feed_prepare(&feed, 0, 3); /* closed with work under way */
    feed_close(&feed);
    mixture_free(&world.mixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_length),
        cmocka_unit_test(test_exactly_once),
        cmocka_unit_test(test_exactly_once_with_fim),
        cmocka_unit_test(test_same_everywhere),
        cmocka_unit_test(test_shares),
        cmocka_unit_test(test_stages_and_limits),
        cmocka_unit_test(test_large),
        cmocka_unit_test(test_feed_thrown_away),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
