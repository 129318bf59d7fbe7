/* packing: every document with a label in exactly one row, rows well filled, and what a row looks
 * like: documents that see themselves only, labels that stay inside, padding that counts for
 * nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "data/loader.h"
#include "kernels/base/rng.h"

enum { MOST_DOCUMENTS = 3000, MOST = 200000, T = 64, EOS = MOST - 1 };

static struct {
    struct token_store store;
    uint32_t ids[MOST];
    uint8_t mask[MOST];
    int64_t offsets[MOST_DOCUMENTS + 1];
} file;

static uint32_t draw(uint64_t key, uint64_t index, uint32_t below)
{
    uint32_t bits[4];
    rng_bits(key, index, bits);
    return bits[0] % below;
}

static void make_file(int64_t documents, uint32_t longest, uint64_t key)
{
    memset(&file, 0, sizeof file);
    int64_t at = 0;
    for (int64_t d = 0; d < documents; d++) {
        at += draw(key, (uint64_t)d, longest + 1);
        file.offsets[d + 1] = at;
    }
    assert_true(at <= MOST);
    for (int64_t i = 0; i < at; i++) {
        file.ids[i] = (uint32_t)i; /* tells where it comes from */
        file.mask[i] = draw(key + 1, (uint64_t)i, 3) > 0;
    }
    file.store = (struct token_store){.path = (char *)(uintptr_t) "memory",
                                      .tokens = at,
                                      .documents = documents,
                                      .vocab_size = MOST,
                                      .eos_id = EOS,
                                      .width = 4,
                                      .token_data = file.ids,
                                      .loss_mask = file.mask,
                                      .document_offsets = file.offsets};
}

/* One row against the rules; adds the documents in it to seen. */
static int64_t expect_row(const struct batch *batch, uint8_t *seen)
{
    int64_t labels = 0, t = 0;
    while (t < T && !(batch->ids[t] == EOS && batch->labels[t] == -1 && batch->first[t] == t)) {
        const int64_t start = t, from = batch->ids[t],
                      document = token_store_document(&file.store, from);
        const int64_t tokens = file.offsets[document + 1] - file.offsets[document],
                      places = tokens - 1 < T ? tokens - 1 : T;
        assert_int_equal(from, file.offsets[document]);
        assert_int_equal(seen[document]++, 0);
        assert_true(places > 0 && t + places <= T);
        for (int64_t i = 0; i < places; i++, t++) {
            assert_int_equal(batch->ids[t], from + i);
            assert_int_equal(batch->labels[t], file.mask[from + i + 1] ? from + i + 1 : -1);
            assert_int_equal(batch->positions[t], i);
            assert_int_equal(batch->first[t], start);
            labels += file.mask[from + i + 1] != 0;
        }
    }
    for (; t < T; t++) {
        assert_true(batch->ids[t] == EOS && batch->labels[t] == -1);
        assert_true(batch->positions[t] == 0 && batch->first[t] == t);
    }
    return labels;
}

static void check(int64_t documents, uint32_t longest, bool shuffle, double filled)
{
    static uint8_t seen[MOST_DOCUMENTS];
    struct row_packing packing;
    struct loader loader;
    int32_t storage[4 * T];
    struct batch batch = batch_view(storage, T);
    int64_t cut = 0, cut_tokens = 0, empty = 0, used = 0;
    make_file(documents, longest, longest);
    assert_int_equal(packing_init(&packing, &file.store, T, shuffle, 3), STATUS_OK);
    loader_init_packed(&loader, &packing, shuffle, 3);
    for (int epoch = 0; epoch < 2; epoch++) {
        memset(seen, 0, sizeof seen);
        for (int64_t row = 0; row < packing.rows; row++) {
            const int64_t counted = loader_batch(&loader, &batch, epoch * packing.rows + row, 1);
            assert_int_equal(counted, expect_row(&batch, seen));
        }
        for (int64_t d = 0; d < documents; d++) {
            assert_int_equal(seen[d], file.offsets[d + 1] - file.offsets[d] > 1);
        }
    }
    for (int64_t d = 0; d < documents; d++) {
        const int64_t labels = file.offsets[d + 1] - file.offsets[d] - 1;
        empty += labels <= 0;
        cut += labels > T;
        cut_tokens += labels > T ? labels - T : 0;
        used += labels <= 0 ? 0 : labels < T ? labels : T;
    }
    assert_true(packing.cut == cut && packing.cut_tokens == cut_tokens && packing.empty == empty);
    assert_int_equal(packing.used, used);
    assert_true((double)used >= filled * (double)(packing.rows * T));
    packing_free(&packing);
    packing_free(&packing);
}

static void test_rows(void **state)
{
    (void)state;
    for (int shuffle = 0; shuffle < 2; shuffle++) {
        check(1, 40, shuffle != 0, 0.01);
        check(3000, 60, shuffle != 0, 0.98);  /* best-fit leaves next to nothing */
        check(1500, 130, shuffle != 0, 0.98); /* half of them fill a row alone */
        check(1025, 3, shuffle != 0, 0.9);    /* a last window of one document */
    }
}

static void test_nothing_to_pack(void **state)
{
    (void)state;
    struct row_packing packing;
    make_file(50, 1, 9);
    assert_int_equal(packing_init(&packing, &file.store, T, true, 3), STATUS_DATA);
    assert_non_null(strstr(status_message(), "memory: none of its 50 documents has two tokens"));
    packing_free(&packing);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_nothing_to_pack),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
