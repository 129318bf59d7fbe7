/* Token files of other programs, written by a Python script from their descriptions: tokens and
 * documents are those that went in; what is damaged, cut or foreign is refused by name. */
#include "unit/scratch.h"

#include "data/token_store.h"

/* The next of the numbers "1,2,3"; false at their end. */
static bool next_number(char **at, int64_t *value)
{
    char *end = NULL;
    *value = strtoll(*at, &end, 10);
    const bool there = end != *at;
    *at = end + (*end == ',');
    return there;
}

/* Taken many at once they are what they are one by one. */
static void check_runs(const struct token_store *store)
{
    static int32_t ids[5000];
    static uint8_t counts[5000];
    for (int64_t from = 0; from < store->tokens && from < 40; from++) {
        const int64_t left = store->tokens - from, count = left < 5000 ? left : 5000;
        token_store_run(store, from, count, ids, counts);
        for (int64_t i = 0; i < count; i++) {
            assert_int_equal(ids[i], token_store_get(store, from + i));
            assert_true(counts[i] == 1);
        }
    }
}

static void check_good(struct token_store *store, const char *name, char *tokens, char *ends)
{
    int64_t value, i = 0, most = 0;
    for (; next_number(&tokens, &value); i++) {
        assert_true(i < store->tokens);
        assert_int_equal(token_store_get(store, i), value);
        most = value > most ? value : most;
    }
    assert_int_equal(store->tokens, i);
    assert_int_equal(store->vocab_size, most + 1);
    assert_false(store->vocab_known);
    assert_string_equal(store->tokenizer, "unknown");
    for (i = 0; next_number(&ends, &value); i++) {
        assert_true(i <= store->documents);
        assert_int_equal(store->document_offsets[i], value);
    }
    if (i != store->documents + 1 || i < 2) {
        fail_msg("%s: %lld documents", name, (long long)store->documents);
    }
    check_runs(store);
}

static void test_as_described(void **state)
{
    (void)state;
    char line[4096];
    int good = 0, bad = 0;
    assert_int_equal(system("python3 " SOURCE_DIR "/tests/unit/write_token_files.py"), 0);
    FILE *cases = fopen("cases.txt", "r");
    assert_non_null(cases);
    while (fgets(line, sizeof line, cases) != NULL) {
        struct token_store store;
        char *parts[4] = {line};
        for (int i = 1; i < 4; i++) {
            parts[i] = strchr(parts[i - 1], '\t');
            assert_non_null(parts[i]);
            *parts[i]++ = '\0';
        }
        const enum status status = token_store_open(&store, parts[0]);
        if (strcmp(parts[1], "-") == 0) {
            if (status != STATUS_OK) {
                fail_msg("%s: %s", parts[0], status_message());
            }
            check_good(&store, parts[0], parts[2], parts[3]);
            good++;
        } else {
            if (status != STATUS_DATA && status != STATUS_IO) {
                fail_msg("%s: accepted", parts[0]);
            }
            expect_message(parts[1]);
            bad++;
        }
        token_store_close(&store);
        token_store_close(&store);
    }
    fclose(cases);
    assert_true(good >= 20 && bad >= 30);
}

/* Every byte of an index changed in turn: refused, or tokens and documents that hold together. */
static void test_index_damaged_anywhere(void **state)
{
    (void)state;
    char *data = NULL;
    size_t bytes = 0;
    int refused = 0;
    assert_int_equal(system("python3 " SOURCE_DIR "/tests/unit/write_token_files.py"), 0);
    assert_int_equal(io_read_file("type8.idx", &data, &bytes, 4096), STATUS_OK);
    for (size_t at = 0; at < bytes; at++) {
        for (int bit = 0; bit < 8; bit++) {
            struct token_store store;
            data[at] = (char)(data[at] ^ (1 << bit));
            assert_int_equal(io_write_file("type8.idx", data, bytes), STATUS_OK);
            const enum status status = token_store_open(&store, "type8.idx");
            assert_true(status == STATUS_OK || status == STATUS_DATA);
            refused += status == STATUS_DATA;
            for (int64_t i = 0; status == STATUS_OK && i < store.tokens; i++) {
                assert_true(token_store_get(&store, i) < store.vocab_size);
                assert_true(token_store_document(&store, i) < store.documents);
            }
            token_store_close(&store);
            data[at] = (char)(data[at] ^ (1 << bit));
        }
    }
    assert_true(refused > 700);
    free(data);
}

static void test_sources_match(void **state)
{
    (void)state;
    const struct token_store bytes = {.path = "a.h5",
                                      .tokenizer = "bytes",
                                      .tokenizer_hash = "bytes"},
                             bpe = {.path = "b.h5", .tokenizer = "bpe", .tokenizer_hash = "12"},
                             other = {.path = "c.h5", .tokenizer = "bpe", .tokenizer_hash = "34"},
                             unknown = {.path = "d.bin", .tokenizer = "unknown"};
    assert_int_equal(token_store_match(&bytes, &bytes), STATUS_OK);
    assert_int_equal(token_store_match(&bpe, &unknown), STATUS_OK);
    assert_int_equal(token_store_match(&unknown, &other), STATUS_OK);
    assert_int_equal(token_store_match(&bytes, &bpe), STATUS_DATA);
    expect_message("a.h5 has ids of tokenizer bytes:bytes, b.h5 of bpe:12");
    assert_int_equal(token_store_match(&bpe, &other), STATUS_DATA);
    expect_message("c.h5 of bpe:34");
}

int main(void)
{
    const struct CMUnitTest tests[] = {SCRATCH_TEST(test_as_described),
                                       SCRATCH_TEST(test_index_damaged_anywhere),
                                       SCRATCH_TEST(test_sources_match)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
