/* resume: schedules go on where as many tokens are behind, to less than one sample; where the data
 * is comes out of a checkpoint as it went in; other contents have another fingerprint. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "trainer/resume.h"

static void test_position(void **state)
{
    (void)state;
    for (int64_t from = 1; from <= 40; from++) {
        for (int64_t to = 1; to <= 40; to++) {
            for (int64_t position = 0; position < 300; position += 7) {
                const int64_t next = resume_position(position, from, to);
                assert_true(next * to >= position * from);
                assert_true(next == 0 || (next - 1) * to < position * from);
                assert_true(from != to || next == position);
            }
        }
    }
    assert_int_equal(resume_position(176, 32, 48), 118);
    assert_int_equal(resume_position((int64_t)1 << 50, 1 << 17, 1 << 12), (int64_t)1 << 55);
}

static struct loader_place place_of(int64_t i)
{
    return (struct loader_place){.epoch = i,
                                 .done = ((int64_t)1 << 52) + i,
                                 .tokens = ((int64_t)1 << 60) + i,
                                 .run = {.order = UINT64_MAX - (uint64_t)i,
                                         .cut = 1 + i,
                                         .fim_parts = fim_parts(0.25),
                                         .fim_key = (uint64_t)1 << 63,
                                         .stream = 5 * i,
                                         .packed = i % 2 == 1}};
}

static void expect_place(const struct loader_place *place, int64_t i)
{
    const struct loader_place want = place_of(i);
    assert_true(place->epoch == want.epoch && place->done == want.done &&
                place->tokens == want.tokens && place->run.order == want.run.order &&
                place->run.cut == want.run.cut && place->run.fim_parts == want.run.fim_parts &&
                place->run.fim_key == want.run.fim_key && place->run.stream == want.run.stream &&
                place->run.packed == want.run.packed);
}

static void test_state_reads_back(void **state)
{
    (void)state;
    static struct data_state written, back;
    char path[400];
    memset(path, 'x', sizeof path);
    memcpy(path + 140, "\xe2\x96\x81", 3); /* the cut would be inside: 399 - 255 = 144 */
    memcpy(path + 143, "\xe2\x96\x81", 3);
    path[399] = '\0';
    written = (struct data_state){.step = 3, .position = 7, .tokens = 9, .count = MIXTURE_SOURCES};
    for (int64_t i = 0; i < MIXTURE_SOURCES; i++) {
        data_state_path(written.source[i].path, i == 1 ? path : "a \"b\".h5");
        written.source[i].fingerprint = UINT64_MAX / 3 - (uint64_t)i;
        written.source[i].contents = i == 2 ? 0 : UINT64_MAX / 5 - (uint64_t)i; /* or not known */
        written.source[i].origin = place_of(i);
        written.source[i].now = place_of(i + 100);
    }
    json_t *json = data_state_write(&written);
    char *text = json_dumps(json, 0);
    assert_non_null(text);
    json_decref(json);
    json = json_loads(text, 0, NULL);
    assert_true(data_state_read(json, &back));
    assert_true(back.step == 3 && back.position == 7 && back.tokens == 9);
    assert_int_equal(back.count, MIXTURE_SOURCES);
    for (int64_t i = 0; i < MIXTURE_SOURCES; i++) {
        assert_string_equal(back.source[i].path, written.source[i].path);
        assert_true(back.source[i].fingerprint == written.source[i].fingerprint);
        assert_true(back.source[i].contents == written.source[i].contents);
        expect_place(&back.source[i].origin, i);
        expect_place(&back.source[i].now, i + 100);
    }
    assert_int_equal(strlen(back.source[1].path), 399 - 146);
    /* none is a checkpoint of before; half of one is refused */
    assert_true(data_state_read(NULL, &back) && back.count == 0);
    json_t *fifth = json_array_get(json_object_get(json, "sources"), 5);
    json_object_set_new(fifth, "contents", json_string("12"));
    assert_false(data_state_read(json, &back));
    json_object_del(fifth, "contents");
    assert_true(data_state_read(json, &back) && back.source[5].contents == 0);
    json_object_del(json_object_get(fifth, "now"), "cut");
    assert_false(data_state_read(json, &back));
    json_object_del(json, "sources");
    assert_false(data_state_read(json, &back));
    json_decref(json);
    free(text);
}

static uint64_t fingerprint(const struct token_store *store)
{
    uint64_t hash = 0;
    assert_int_equal(data_fingerprint(store, &hash), STATUS_OK);
    return hash;
}

/* Of a store in memory; a sum of its parts would not do. */
static void test_contents(void **state)
{
    (void)state;
    enum { TOKENS = 3 << 20 };
    uint16_t *ids = calloc(TOKENS, sizeof *ids);
    uint8_t *mask = calloc(TOKENS, 1);
    int64_t offsets[3] = {0, 100, TOKENS};
    uint64_t seen[16];
    int count = 0;
    assert_true(ids != NULL && mask != NULL);
    struct token_store store = {.tokens = TOKENS,
                                .documents = 2,
                                .vocab_size = 300,
                                .width = 2,
                                .token_data = ids,
                                .document_offsets = offsets};
    for (int change = 0; change < 8; change++) {
        ids[5] = change == 1;
        ids[TOKENS - 2] = change == 2 ? 1 : 0;
        ids[TOKENS / 2] = change == 3 ? 1 : 0;
        offsets[1] = change == 4 ? 101 : 100;
        store.vocab_size = change == 5 ? 301 : 300;
        store.loss_mask = change >= 6 ? mask : NULL;
        mask[TOKENS / 2] = change == 7;
        assert_int_equal(token_store_contents(&store, &seen[count++]), STATUS_OK);
    }
    for (int a = 0; a < count; a++) {
        for (int b = 0; b < a; b++) {
            assert_true(seen[a] != seen[b] && seen[a] != 0);
        }
    }
    free(ids);
    free(mask);
}

static void test_fingerprint(void **state)
{
    (void)state;
    enum { TOKENS = 4 << 20 };
    uint16_t *ids = calloc(TOKENS, sizeof *ids);
    int64_t offsets[3] = {0, 100, TOKENS};
    assert_non_null(ids);
    struct token_store store = {.tokens = TOKENS,
                                .documents = 2,
                                .vocab_size = 300,
                                .width = 2,
                                .token_data = ids,
                                .document_offsets = offsets};
    const uint64_t whole = fingerprint(&store);
    assert_true(whole == fingerprint(&store));
    for (int64_t at = 0; at < TOKENS; at += TOKENS - 1) { /* both ends are looked at */
        ids[at] = 1;
        assert_true(fingerprint(&store) != whole);
        ids[at] = 0;
    }
    offsets[1] = 101;
    assert_true(fingerprint(&store) != whole);
    offsets[1] = 100;
    store.tokens--;
    assert_true(fingerprint(&store) != whole);
    free(ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_position),
        cmocka_unit_test(test_state_reads_back),
        cmocka_unit_test(test_fingerprint),
        cmocka_unit_test(test_contents),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
