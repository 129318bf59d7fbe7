/* prepare: texts, folders and .jsonl become token files; what cannot is named with its line, and
 * leaves nothing behind. */
#define _GNU_SOURCE
#include "unit/scratch.h"

#include <dirent.h>
#include <stdio.h>

#include "data/lists.h"
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
        assert_int_equal(token_store_counts(&store, i), mask[i]);
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
        int64_t k = 1, failures = 0;
        for (bool met = true; met; k++) {
            io_fault_arm(IO_FAULT_NONE, 0, false);
            assert_int_equal(prepare("bytes", 0, old, &summary), STATUS_OK);
            io_fault_arm(kinds[kind], k, false);
            const enum status status = prepare("bytes", 0, inputs, &summary);
            met = io_operations() >= k;
            io_fault_arm(IO_FAULT_NONE, 0, false);
            if (status != STATUS_OK) {
                assert_int_equal(status, STATUS_IO);
                expect_message("out.h5"); /* not what came after it */
                expect_tokens("a$");
                failures++;
            }
            if (met) { /* also where nothing but a file that is done with could not be removed */
                assert_int_equal(prepare("bytes", 0, inputs, &summary), STATUS_OK);
            }
            assert_int_equal(entries("."), 2 + 3);
            struct token_store store;
            assert_int_equal(token_store_open(&store, "out.h5"), STATUS_OK);
            assert_int_equal(store.tokens, 6);
            assert_int_equal(store.documents, 3);
            token_store_close(&store);
        }
        assert_true(failures > 10 && failures < k - 2); /* writes, sync and rename were all met */
    }
}

/* --- the same bytes, however it is made --- */

static struct prepare_options request(char *const *inputs, int count, const char *output)
{
    return (struct prepare_options){.tokenizer = "bytes",
                                    .output = output,
                                    .inputs = inputs,
                                    .input_count = count,
                                    .workers = 2,
                                    .chat_template = "deepseek_v3",
                                    .dedup = true};
}

static char corpus_name[] = "in",
            lines_name[] = "in.jsonl", *const corpus[] = {corpus_name, lines_name};

/* Texts, among them equal ones, and lines of every kind, over several batches. */
static void put_corpus(void)
{
    struct byte_list lines = {0};
    char text[4096], line[4400];
    assert_int_equal(io_make_dir("in"), STATUS_OK);
    for (int i = 0; i < 700; i++) {
        char name[32];
        const int kind = i < 100 ? i % 7 : 2, /* masks in the first batch alone */
            length = 100 + i * 37 % 3900;
        memset(text, 'a' + i % 5, sizeof text);
        text[length] = '\0';
        snprintf(name, sizeof name, "in/%03d.txt", i);
        if (i < 40) {
            put(name, text);
        }
        snprintf(line, sizeof line,
                 kind == 0   ? "{\"tokens\":[1,2,%d],\"loss_mask\":[0,1,1]}\n"
                 : kind == 1 ? "{\"messages\":[{\"role\":\"user\",\"content\":\"%d\"},"
                               "{\"role\":\"assistant\",\"content\":\"yes\"}]}\n"
                             : "{\"n\":%d,\"text\":\"",
                 i % 50);
        assert_int_equal(byte_list_add(&lines, line, strlen(line)), STATUS_OK);
        if (kind > 1) {
            snprintf(line, sizeof line, "%s\"}\n", text);
            assert_int_equal(byte_list_add(&lines, line, strlen(line)), STATUS_OK);
        }
    }
    assert_int_equal(io_write_file("in.jsonl", lines.data, lines.count), STATUS_OK);
    byte_list_free(&lines);
}

static void expect_equal_files(const char *a, const char *b)
{
    char *data[2];
    size_t bytes[2];
    assert_int_equal(io_read_file(a, &data[0], &bytes[0], 1 << 28), STATUS_OK);
    assert_int_equal(io_read_file(b, &data[1], &bytes[1], 1 << 28), STATUS_OK);
    assert_int_equal(bytes[0], bytes[1]);
    assert_memory_equal(data[0], data[1], bytes[0]);
    free(data[0]);
    free(data[1]);
}

static void test_any_number_of_workers(void **state)
{
    (void)state;
    struct prepare_summary first, summary;
    struct prepare_options options = request(corpus, 2, "one.h5");
    put_corpus();
    options.workers = 1;
    assert_int_equal(prepare_run(&options, &first), STATUS_OK);
    assert_int_equal(first.documents + first.duplicates, 740);
    assert_true(first.duplicates > 20 && first.documents > 100);
    for (int workers = 2; workers <= 5; workers++) {
        options.workers = workers;
        options.output = "many.h5";
        options.journal_seconds = workers == 3 ? 0 : 10; /* after every batch */
        assert_int_equal(prepare_run(&options, &summary), STATUS_OK);
        assert_memory_equal(&first, &summary, sizeof first);
        expect_equal_files("one.h5", "many.h5");
    }
}

static enum status run_corpus(void)
{
    struct prepare_summary summary;
    struct prepare_options options = request(corpus, 2, "killed.h5");
    return prepare_run(&options, &summary);
}

static int64_t resumed_tokens; /* of the last run that went on */

static enum status go_on(void)
{
    struct prepare_summary summary;
    struct prepare_options options = request(corpus, 2, "killed.h5");
    const enum status status = prepare_run(&options, &summary);
    resumed_tokens = summary.resumed;
    return status;
}

/* Killed at any file operation: the output is the old one or whole, and the same call makes it so,
 * from where it stood. */
static void test_killed_anywhere(void **state)
{
    (void)state;
    static const enum io_fault kinds[] = {IO_FAULT_KILL_TORN, IO_FAULT_KILL_AFTER};
    struct prepare_summary summary;
    struct prepare_options options = request(corpus, 2, "whole.h5");
    const int step = counts_full() ? 1 : 3;
    int went_on = 0;
    put_corpus();
    assert_int_equal(prepare_run(&options, &summary), STATUS_OK);
    for (size_t kind = 0; kind < sizeof kinds / sizeof kinds[0]; kind++) {
        for (int64_t k = 1 + (int64_t)kind; killed(run_corpus, kinds[kind], k); k += step) {
            assert_true(k < 1000);
            if (io_exists("killed.h5")) {
                expect_equal_files("whole.h5", "killed.h5");
            }
            if (go_on() != STATUS_OK) {
                fail_msg("killed at %lld: %s", (long long)k, status_message());
            }
            went_on += resumed_tokens > 0;
            expect_equal_files("whole.h5", "killed.h5");
            assert_int_equal(entries("."), 2 + 4); /* in, in.jsonl, whole.h5, killed.h5 */
            assert_int_equal(io_remove("killed.h5"), STATUS_OK);
        }
        assert_int_equal(io_remove("killed.h5"), STATUS_OK);
    }
    assert_true(went_on > 5);
}

/* A full disk is an error of its own; with room again the same call goes on. Other inputs or
 * options: it begins anew, and says so. */
static int told;
static void count_notes(void *context, const char *line)
{
    told += strstr(line, context) != NULL;
}

static void test_goes_on_or_begins_anew(void **state)
{
    (void)state;
    static char anew[] = "is of other inputs or options: starting anew", on[] = "going on there";
    struct prepare_summary summary;
    struct prepare_options options = request(corpus, 2, "whole.h5");
    put_corpus();
    assert_int_equal(prepare_run(&options, &summary), STATUS_OK);
    options = request(corpus, 2, "out.h5");
    options.journal_seconds = 0;
    options.note = count_notes;
    for (int changed = 0; changed < 3; changed++) {
        io_fault_arm(IO_FAULT_ENOSPC, 30, true);
        assert_int_equal(prepare_run(&options, &summary), STATUS_IO);
        expect_message("free space or write elsewhere");
        io_fault_arm(IO_FAULT_NONE, 0, false);
        assert_false(io_exists("out.h5"));
        options.context = changed == 0 ? on : anew;
        if (changed == 1) {
            put("in/000.txt", "another");
        }
        options.count_prompt = changed == 2;
        told = 0;
        assert_int_equal(prepare_run(&options, &summary), STATUS_OK);
        assert_int_equal(told, 1);
        assert_int_equal(summary.resumed > 0, changed == 0);
        if (changed == 0) {
            expect_equal_files("whole.h5", "out.h5");
        }
        assert_int_equal(io_remove("out.h5"), STATUS_OK);
        assert_int_equal(entries("."), 2 + 3);
    }
}

/* Asked to stop before the k-th round, then asked again. */
static int stop_in;
static bool stop(void)
{
    return stop_in-- == 0;
}

static void test_stops_and_goes_on(void **state)
{
    (void)state;
    struct prepare_summary summary;
    struct prepare_options options = request(corpus, 2, "whole.h5");
    put_corpus();
    assert_int_equal(prepare_run(&options, &summary), STATUS_OK);
    options.output = "out.h5";
    options.stop = stop;
    int stops = 0;
    enum status status;
    do {
        stop_in = 1;
        status = prepare_run(&options, &summary);
        stops += status == STATUS_PREEMPTED;
    } while (status == STATUS_PREEMPTED && stops < 20);
    assert_int_equal(status, STATUS_OK);
    assert_true(stops > 0 && stops < 20);
    expect_equal_files("whole.h5", "out.h5");
}

/* What is left out is counted by its reason. */
static void test_counts(void **state)
{
    (void)state;
    static char folder[] = "in", named[] = "named.bin", *const inputs[] = {folder, named};
    struct prepare_summary summary;
    struct prepare_options options = request(inputs, 2, "out.h5");
    assert_int_equal(io_make_dir("in"), STATUS_OK);
    put("in/a.txt", "abc");
    put("in/b.txt", "abc");
    put("in/long.txt", "a text of more than thirty bytes, that is");
    put("in/large.txt", "a text of more than sixty bytes, that is what stands here, and more");
    assert_int_equal(io_write_file("in/binary", "a\0b", 3), STATUS_OK);
    assert_int_equal(io_write_file("named.bin", "a\0b", 3), STATUS_OK);
    put("in/other.log", "x");
    put("in/l.jsonl", "{\"text\":\"a line beyond 60 bytes: 0123456789012345678901234567890\"}\n"
                      "{\"text\":\"\"}\n{\n{\"text\":\"\xff\"}\n{\"text\":\"abc\"}\n"
                      "{\"messages\":[{\"role\":\"user\",\"content\":\"?\"}]}\n");
    static const char *const glob[] = {"*.log"};
    options.filter = (struct input_filter){.exclude = glob, .exclude_count = 1, .most_bytes = 300};
    put("in/huge.txt", "");
    assert_int_equal(truncate("in/huge.txt", 301), 0);
    options.most_document_bytes = 60;
    options.skip_broken = true;
    if (prepare_run(&options, &summary) != STATUS_OK) {
        fail_msg("%s", status_message());
    }
    assert_int_equal(summary.files, 7);
    assert_int_equal(summary.documents, 3); /* abc, long.txt, named.bin */
    assert_int_equal(summary.duplicates, 2);
    assert_int_equal(summary.skipped_empty, 1);
    assert_int_equal(summary.skipped_invalid, 1);
    assert_int_equal(summary.skipped_binary, 1);
    assert_int_equal(summary.skipped_long, 2);
    assert_int_equal(summary.skipped_broken, 1);
    assert_int_equal(summary.skipped_unanswered, 1);
    assert_int_equal(summary.skipped_by_size, 1);
    assert_int_equal(summary.skipped_by_name, 1);
    assert_int_equal(summary.tokens, 4 + 42 + 4);
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
        SCRATCH_TEST(test_any_number_of_workers),
        SCRATCH_TEST(test_killed_anywhere),
        SCRATCH_TEST(test_goes_on_or_begins_anew),
        SCRATCH_TEST(test_stops_and_goes_on),
        SCRATCH_TEST(test_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
