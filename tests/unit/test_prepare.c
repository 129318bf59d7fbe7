/* prepare: texts, folders and .jsonl become token files; what cannot is named with its line, and
 * leaves nothing behind. */
#define _GNU_SOURCE
#include "unit/scratch.h"

#include <dirent.h>
#include <stdio.h>

#include "data/prepare.h"
#include "data/token_store.h"

enum { INPUTS = 4, PARTS = 3 };

static enum status prepare(const char *tokenizer, int64_t vocab, const char *const inputs[INPUTS],
                           struct prepare_summary *summary)
{
    char *list[INPUTS];
    int count = 0;
    for (; count < INPUTS && inputs[count] != NULL; count++) {
        list[count] = (char *)(uintptr_t)inputs[count];
    }
    const struct prepare_options options = {.tokenizer = tokenizer,
                                            .vocab_size = vocab,
                                            .output = "out.h5",
                                            .inputs = list,
                                            .input_count = count};
    return prepare_run(&options, summary);
}

/* out.h5 holds these bytes, '$' for end-of-document, documents cut after each. */
static void expect_tokens(const char *expected)
{
    struct token_store store;
    int64_t document = 0;
    if (token_store_open(&store, "out.h5") != STATUS_OK) {
        fail_msg("%s", status_message());
    }
    assert_int_equal(store.tokens, strlen(expected));
    assert_int_equal(store.vocab_size, 257);
    assert_int_equal(store.eos_id, 256);
    assert_string_equal(store.tokenizer, "bytes");
    for (int64_t i = 0; i < store.tokens; i++) {
        const int id = expected[i] == '$' ? 256 : (unsigned char)expected[i];
        assert_int_equal(token_store_get(&store, i), id);
        assert_int_equal(token_store_document(&store, i), document);
        document += expected[i] == '$';
    }
    assert_int_equal(store.documents, document);
    token_store_close(&store);
}

static int entries(const char *path)
{
    int count = 0;
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while (readdir(dir) != NULL) {
        count++;
    }
    closedir(dir);
    return count;
}

static void test_text_files(void **state)
{
    (void)state;
    static const char *const inputs[INPUTS] = {"b.txt", "empty.txt", "a.txt", "b.txt"};
    struct prepare_summary summary;
    put("a.txt", "first\n\xc3\xa9");
    put("b.txt", "x");
    put("empty.txt", "");
    assert_int_equal(prepare("bytes", 0, inputs, &summary), STATUS_OK);
    expect_tokens("x$first\n\xc3\xa9$x$"); /* in the order given */
    assert_int_equal(summary.files, 4);
    assert_int_equal(summary.documents, 3);
    assert_int_equal(summary.tokens, 13);
    assert_int_equal(summary.bytes, 10);
    assert_int_equal(summary.skipped_empty, 1);
    assert_int_equal(entries("."), 2 + 4);
}

static void test_folder_is_sorted(void **state)
{
    (void)state;
    static const char *const inputs[INPUTS] = {"in"};
    static const char *const files[] = {"in/c", "in/a", "in/b/2", "in/b/10", "in/Z", "in/b/1"};
    struct prepare_summary summary;
    assert_int_equal(io_make_dir("in/b"), STATUS_OK);
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        put(files[i], files[i] + 3);
    }
    assert_int_equal(prepare("bytes", 0, inputs, &summary), STATUS_OK);
    expect_tokens("Z$a$b/1$b/10$b/2$c$");
    assert_int_equal(summary.files, 6);
}

/* A token file inside its own input folder is not text, neither the old nor the one in making. */
static void test_output_inside_the_input(void **state)
{
    (void)state;
    static const char *const inputs[INPUTS] = {"."};
    struct prepare_summary summary;
    put("a.txt", "a");
    put("p.txt", "p");
    for (int i = 0; i < 2; i++) {
        assert_int_equal(prepare("bytes", 0, inputs, &summary), STATUS_OK);
        expect_tokens("a$p$");
        assert_int_equal(summary.files, 2);
    }
}

static void test_jsonl_text(void **state)
{
    (void)state;
    static const char *const inputs[INPUTS] = {"a.jsonl"};
    struct prepare_summary summary;
    put("a.jsonl", "{\"text\": \"one\", \"id\": 7}\n\n  \r\n{\"text\": \"\"}\r\n"
                   "{\"text\": \"t\\u00e9\\n\"}\n{\"text\":\"last\"}"); /* no newline at the end */
    assert_int_equal(prepare("bytes", 0, inputs, &summary), STATUS_OK);
    expect_tokens("one$t\xc3\xa9\n$last$");
    assert_int_equal(summary.documents, 3);
    assert_int_equal(summary.skipped_empty, 1);
}

static void test_jsonl_tokens(void **state)
{
    (void)state;
    static const char *const inputs[INPUTS] = {"a.jsonl"};
    static const int64_t ids[] = {5, 0, 69999, 1, 2, 2}, documents[] = {0, 0, 0, 1, 2, 2};
    static const uint8_t mask[] = {0, 1, 0, 1, 1, 0};
    struct prepare_summary summary;
    struct token_store store;
    put("a.jsonl", "{\"tokens\": [5, 0, 69999], \"loss_mask\": [0, 1, 0]}\n{\"tokens\": []}\n"
                   "{\"tokens\": [1]}\n{\"tokens\": [2, 2], \"loss_mask\": [1, 0]}\n");
    assert_int_equal(prepare("none", 70000, inputs, &summary), STATUS_OK);
    assert_int_equal(summary.tokens, 6);
    assert_int_equal(token_store_open(&store, "out.h5"), STATUS_OK);
    assert_int_equal(store.tokens, 6);
    assert_int_equal(store.documents, 3);
    assert_int_equal(store.eos_id, -1);
    assert_int_equal(store.vocab_size, 70000);
    assert_string_equal(store.tokenizer, "none");
    for (int64_t i = 0; i < 6; i++) {
        assert_int_equal(token_store_get(&store, i), ids[i]);
        assert_int_equal(token_store_document(&store, i), documents[i]);
        assert_int_equal(store.loss_mask[i], mask[i]);
    }
    token_store_close(&store);
}

static void test_bad_lines_are_named(void **state)
{
    (void)state;
    static const char *const inputs[INPUTS] = {"good.txt", "bad.jsonl"};
    static const struct {
        const char *lines;
        const char *parts[PARTS];
    } cases[] = {
        {"{\"text\": \"a\"}\n{\"text\": \"b\"\n", {"bad.jsonl:2: not JSON"}},
        {"{\"text\": \"a\"}\n\n\nhello\n", {"bad.jsonl:4: not JSON"}},
        {"{\"text\": 5}\n", {"bad.jsonl:1: needs \"text\" or \"tokens\""}},
        {"[1, 2]\n", {"bad.jsonl:1: "}},
        {"\"text\"\n", {"bad.jsonl:1: "}},
        {"{}\n", {"bad.jsonl:1: needs \"text\" or \"tokens\""}},
        {"{\"text\": \"a\", \"text\": \"b\"}\n", {"bad.jsonl:1: not JSON: duplicate"}},
        {"{\"text\": \"a\"} x\n", {"bad.jsonl:1: not JSON"}},
        {"{\"tokens\": 5}\n", {"bad.jsonl:1: \"tokens\" must be a list"}},
        {"{\"tokens\": [1, 1.5]}\n", {"bad.jsonl:1: token 1 is not a whole number"}},
        {"{\"tokens\": [-1]}\n", {"bad.jsonl:1: token 0 is not a whole number"}},
        {"{\"tokens\": [\"1\"]}\n", {"bad.jsonl:1: token 0"}},
        {"{\"tokens\": [4294967296]}\n", {"bad.jsonl:1: token 0"}},
        {"{\"tokens\": [1, 257]}\n",
         {"bad.jsonl:1: token id 257 is not below the vocabulary size 257"}},
        {"{\"tokens\": [1, 2], \"loss_mask\": [1]}\n", {"bad.jsonl:1: ", "same length"}},
        {"{\"tokens\": [1], \"loss_mask\": [2]}\n", {"bad.jsonl:1: loss_mask 0"}},
        {"{\"tokens\": [1], \"loss_mask\": [true]}\n", {"bad.jsonl:1: loss_mask 0"}},
        {"{\"tokens\": [1], \"loss_mask\": 1}\n", {"bad.jsonl:1: ", "same length"}},
    };
    struct prepare_summary summary;
    put("good.txt", "good");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        put("bad.jsonl", cases[i].lines);
        assert_int_equal(prepare("bytes", 0, inputs, &summary), STATUS_DATA);
        expect_parts(cases[i].parts, PARTS, cases[i].lines);
        assert_int_equal(entries("."), 2 + 2); /* nothing but the inputs */
    }
}

static void test_bad_requests(void **state)
{
    (void)state;
    static const struct {
        const char *tokenizer;
        int64_t vocab;
        const char *input;
        enum status status;
        const char *part;
    } cases[] = {
        {"bpe.json", 0, "a.txt", STATUS_IO, "bpe.json"},
        {"none", 0, "a.jsonl", STATUS_USAGE, "needs --vocab-size"},
        {"bytes", 256, "a.txt", STATUS_USAGE, "256 is below the 257"},
        {"none", 300, "a.txt", STATUS_DATA, "a.txt: text, but --tokenizer none"},
        {"none", 300, "a.jsonl", STATUS_DATA, "a.jsonl:1: text, but --tokenizer none"},
        {"bytes", 0, "gone.txt", STATUS_IO, "gone.txt"},
        {"bytes", 0, "gone.jsonl", STATUS_IO, "gone.jsonl"},
        {"bytes", 0, "empty.txt", STATUS_DATA, "out.h5: the inputs hold no tokens"},
        {"bytes", 0, "empty", STATUS_DATA, "out.h5: the inputs hold no tokens"},
    };
    struct prepare_summary summary;
    put("a.txt", "a");
    put("a.jsonl", "{\"text\": \"a\"}\n");
    put("empty.txt", "");
    assert_int_equal(io_make_dir("empty"), STATUS_OK);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *const inputs[INPUTS] = {cases[i].input};
        assert_int_equal(prepare(cases[i].tokenizer, cases[i].vocab, inputs, &summary),
                         cases[i].status);
        expect_message(cases[i].part);
        assert_int_equal(entries("."), 2 + 4);
    }
}

/* Whichever file operation fails, the old output stands, whole, and the same call goes on. */
static void test_disk_errors(void **state)
{
    (void)state;
    static const char *const inputs[INPUTS] = {"a.txt", "b.jsonl"}, *const old[INPUTS] = {"a.txt"};
    static const enum io_fault kinds[] = {IO_FAULT_EIO, IO_FAULT_ENOSPC};
    struct prepare_summary summary;
    put("a.txt", "a");
    put("b.jsonl", "{\"tokens\": [66, 67]}\n{\"text\": \"d\"}\n");
    for (size_t kind = 0; kind < sizeof kinds / sizeof kinds[0]; kind++) {
        int64_t k = 1;
        for (enum status status = STATUS_IO; status != STATUS_OK; k++) {
            io_fault_arm(IO_FAULT_NONE, 0, false);
            assert_int_equal(prepare("bytes", 0, old, &summary), STATUS_OK);
            io_fault_arm(kinds[kind], k, false);
            status = prepare("bytes", 0, inputs, &summary);
            io_fault_arm(IO_FAULT_NONE, 0, false);
            if (status != STATUS_OK) {
                assert_int_equal(status, STATUS_IO);
                expect_tokens("a$");
                assert_int_equal(prepare("bytes", 0, inputs, &summary), STATUS_OK);
            }
            assert_int_equal(entries("."), 2 + 3);
            struct token_store store;
            assert_int_equal(token_store_open(&store, "out.h5"), STATUS_OK);
            assert_int_equal(store.tokens, 6);
            assert_int_equal(store.documents, 3);
            token_store_close(&store);
        }
        assert_true(k > 10); /* writes, sync and rename were all met */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(test_text_files),
        SCRATCH_TEST(test_folder_is_sorted),
        SCRATCH_TEST(test_output_inside_the_input),
        SCRATCH_TEST(test_jsonl_text),
        SCRATCH_TEST(test_jsonl_tokens),
        SCRATCH_TEST(test_bad_lines_are_named),
        SCRATCH_TEST(test_bad_requests),
        SCRATCH_TEST(test_disk_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
