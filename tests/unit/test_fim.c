/* fill-in-the-middle: prefix, middle and suffix make the document again; how many documents are
 * taken, and where they are cut, is as said; a stream read anywhere is the stream read from its
 * start. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/loader.h"
#include "kernels/base/rng.h"

enum { MOST_DOCUMENTS = 700, LONGEST = 30, MOST = MOST_DOCUMENTS * (LONGEST + 4), EOS = 9999 };
enum { PREFIX = 10000, MIDDLE, SUFFIX };

static struct {
    struct token_store store;
    uint32_t ids[MOST];
    uint8_t mask[MOST];
    int64_t offsets[MOST_DOCUMENTS + 1];
} file;
static int64_t stream[MOST]; /* origins of an epoch's tokens */

static uint32_t draw(uint64_t key, uint64_t index, uint32_t below)
{
    uint32_t bits[4];
    rng_bits(key, index, bits);
    return bits[0] % below;
}

/* Documents of 0 to LONGEST tokens and mostly an end; ids differ within a document. */
static void make_file(int64_t documents, uint64_t key)
{
    memset(&file, 0, sizeof file);
    int64_t at = 0;
    for (int64_t d = 0; d < documents; d++) {
        const int64_t body = draw(key, (uint64_t)d, LONGEST + 1);
        for (int64_t i = 0; i < body; i++) {
            file.ids[at++] = (uint32_t)(d * 14 % 9000 + i);
        }
        if (draw(key + 1, (uint64_t)d, 10) > 0) {
            file.ids[at++] = EOS;
        }
        file.offsets[d + 1] = at;
    }
    for (int64_t i = 0; i < at; i++) {
        file.mask[i] = draw(key + 2, (uint64_t)i, 5) > 0;
    }
    file.store = (struct token_store){.path = (char *)(uintptr_t) "memory",
                                      .tokens = at,
                                      .documents = documents,
                                      .vocab_size = SUFFIX + 1,
                                      .eos_id = EOS,
                                      .width = 4,
                                      .token_data = file.ids,
                                      .document_offsets = file.offsets};
}

/* The document's tokens from the pieces that stand in the stream at `at`. */
static void expect_restored(const struct fim_document *d)
{
    const int64_t *own = stream + d->begin, length = d->end - d->begin;
    const int64_t from = file.offsets[d->index], tokens = file.offsets[d->index + 1] - from;
    int64_t part[4][LONGEST + 2], count[4] = {0}, which = 0;
    if (d->low < 0) {
        assert_int_equal(length, tokens);
        for (int64_t i = 0; i < tokens; i++) {
            assert_int_equal(own[i], from + i);
        }
        return;
    }
    assert_int_equal(length, tokens + FIM_TOKENS);
    assert_int_equal(own[0], FIM_PREFIX);
    for (int64_t i = 1; i < length; i++) { /* 0 prefix, 1 suffix, 2 middle and the end */
        if (own[i] < 0) {
            assert_int_equal(own[i], which == 0 ? FIM_SUFFIX : FIM_MIDDLE);
            which++;
        } else {
            part[which][count[which]++] = own[i];
        }
    }
    assert_int_equal(which, 2);
    const bool ends = tokens > 0 && file.ids[from + tokens - 1] == EOS;
    count[2] -= ends ? 1 : 0;
    static const int order[] = {0, 2, 1}; /* prefix, middle, suffix */
    int64_t at = from;
    for (int p = 0; p < 3; p++) {
        for (int64_t i = 0; i < count[order[p]]; i++) {
            assert_int_equal(part[order[p]][i], at++);
        }
    }
    assert_int_equal(at, from + tokens - (ends ? 1 : 0));
    assert_true(!ends || own[length - 1] == from + tokens - 1);
}

static void test_restores(void **state)
{
    (void)state;
    static const double rates[] = {0, 0.1, 0.5, 0.77, 1};
    static const int64_t documents[] = {1, 3, 64, 65, 700};
    for (size_t c = 0; c < 25; c++) {
        make_file(documents[c % 5], c);
        const struct fim fim = {.parts = fim_parts(rates[c / 5]), .key = 77 + c};
        const int64_t length = fim_stream(&fim, &file.store);
        int64_t taken = 0;
        if (file.store.tokens == 0) {
            continue;
        }
        struct fim_document d;
        fim_find(&fim, &file.store, 0, &d);
        for (int64_t i = 0; i < d.end - d.begin; i++) {
            stream[d.begin + i] = fim_origin(&d, i);
        }
        while (d.index + 1 < file.store.documents) {
            taken += d.low >= 0;
            fim_next(&fim, &file.store, &d);
            for (int64_t i = 0; i < d.end - d.begin; i++) {
                stream[d.begin + i] = fim_origin(&d, i);
            }
        }
        assert_int_equal(d.end, length);
        for (int64_t position = 0; position < length; position++) {
            fim_find(&fim, &file.store, position, &d);
            assert_true(d.begin <= position && position < d.end);
            assert_int_equal(fim_origin(&d, position - d.begin), stream[position]);
            if (position == d.begin) {
                expect_restored(&d);
            }
        }
        assert_true(fabs((double)taken - rates[c / 5] * (double)file.store.documents) < 2);
    }
}

/* Over epochs every document is taken as often as any other, and cut anywhere alike: within five
 * standard deviations of what independent draws would give. */
static void test_rates(void **state)
{
    (void)state;
    enum { DOCUMENTS = 100, EPOCHS = 3000 };
    const double rate = 0.3, mean = rate * EPOCHS, deviation = sqrt(mean * (1 - rate));
    static int64_t taken[DOCUMENTS];
    double low = 0, high = 0, cuts = 0;
    make_file(DOCUMENTS, 4);
    memset(taken, 0, sizeof taken);
    for (uint64_t epoch = 0; epoch < EPOCHS; epoch++) {
        const struct fim fim = {.parts = fim_parts(rate), .key = rng_subkey(5, epoch)};
        struct fim_document d;
        fim_find(&fim, &file.store, 0, &d);
        for (;; fim_next(&fim, &file.store, &d)) {
            taken[d.index] += d.low >= 0;
            if (d.low >= 0 && d.body == LONGEST) {
                low += (double)d.low / LONGEST;
                high += (double)d.high / LONGEST;
                cuts++;
            }
            if (d.index + 1 == file.store.documents) {
                break;
            }
        }
    }
    for (int64_t i = 1; i < DOCUMENTS; i++) { /* an empty first one is passed over by fim_find */
        assert_true(fabs((double)taken[i] - mean) < 5 * deviation);
    }
    assert_true(cuts > 100);
    assert_true(fabs(low / cuts - 1.0 / 3) < 5 * sqrt(1.0 / 18 / cuts) + 0.01);
    assert_true(fabs(high / cuts - 2.0 / 3) < 5 * sqrt(1.0 / 18 / cuts) + 0.01);
}

/* Samples are cut from the stream, their labels one further on; documents are masked by where they
 * lie in it. */
static void check_samples(bool mask_documents, bool masked)
{
    enum { T = 13 };
    struct loader loader;
    const struct fim fim = {
        .parts = fim_parts(0.5), .prefix = PREFIX, .middle = MIDDLE, .suffix = SUFFIX};
    int32_t storage[4 * T];
    struct batch batch = batch_view(storage, T);
    file.store.loss_mask = masked ? file.mask : NULL;
    assert_int_equal(loader_init(&loader, &file.store, T, false, mask_documents, 6), STATUS_OK);
    loader_set_fim(&loader, &fim);
    const struct loader_place start = loader_start(&loader);
    const struct fim own = {.parts = fim.parts, .key = start.run.fim_key};
    for (int64_t i = 0; i < loader.samples; i++) {
        int64_t labels = 0;
        const int64_t counted = loader_batch(&loader, &batch, i, 1);
        for (int64_t t = 0; t < T; t++) {
            struct fim_document d, next;
            fim_find(&own, &file.store, i * T + t, &d);
            const int64_t begin = d.begin - i * T;
            const int64_t first = mask_documents && begin > 0 ? begin : 0;
            const bool there = i * T + t + 1 < fim_stream(&own, &file.store);
            fim_find(&own, &file.store, i * T + t + (there ? 1 : 0), &next);
            const int64_t from = fim_origin(&next, i * T + t + 1 - next.begin);
            const bool counts = there && (from < 0 || !masked || file.mask[from] != 0) &&
                                !(mask_documents && next.index != d.index);
            const int32_t id = from == FIM_PREFIX   ? PREFIX
                               : from == FIM_MIDDLE ? MIDDLE
                               : from == FIM_SUFFIX ? SUFFIX
                                                    : (int32_t)file.ids[from];
            assert_int_equal(batch.first[t], first);
            assert_int_equal(batch.positions[t], t - first);
            assert_int_equal(batch.labels[t], counts ? id : -1);
            assert_true(t + 1 == T || batch.ids[t + 1] == id);
            labels += counts;
        }
        assert_int_equal(counted, labels);
    }
}

static void test_samples(void **state)
{
    (void)state;
    make_file(200, 8);
    for (int i = 0; i < 4; i++) {
        check_samples((i & 1) != 0, (i & 2) != 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_restores),
        cmocka_unit_test(test_rates),
        cmocka_unit_test(test_samples),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
