/* prepare with long texts in pieces: the same file as of whole ones, and as the texts say, with any
 * number of workers, and stopped between any two pieces. */
#include "unit/scratch.h"

#include "data/prepare.h"
#include "data/token_store.h"

/* Texts of more than a batch come in pieces, unless their equals are to be found: the same file. */
enum { BATCH = 1 << 20 };
static const struct {
    const char *name;
    int64_t bytes, nul; /* nul: where one stands; -1: nowhere */
} long_texts[] = {{"in/a", 100, -1},
                  {"in/b", BATCH, -1},
                  {"in/c", BATCH + 1, -1},
                  {"in/d", 2 * BATCH, 0},
                  {"in/e", 2 * BATCH, -1},
                  {"in/f", 3 * BATCH + 5, 3 * BATCH + 4},
                  {"in/g", 2 * BATCH - 1, -1},
                  {"in/h", 4 * BATCH, -1},
                  {"in/i", 10, 3},
                  {"in/j", 10, -1},
                  {"named", BATCH + 100, BATCH + 50}};
enum { LONG_TEXTS = sizeof long_texts / sizeof long_texts[0] };
static char folder[] = "in", named[] = "named", *const long_inputs[] = {folder, named};

static struct prepare_options request(const char *output)
{
    return (struct prepare_options){.tokenizer = "bytes",
                                    .output = output,
                                    .inputs = long_inputs,
                                    .input_count = 2,
                                    .workers = 2,
                                    .journal_seconds = 10};
}

static void put_long_texts(void)
{
    char *text = malloc(4 * BATCH);
    assert_non_null(text);
    assert_int_equal(io_make_dir("in"), STATUS_OK);
    for (int f = 0; f < LONG_TEXTS; f++) {
        for (int64_t i = 0; i < long_texts[f].bytes; i++) {
            text[i] = (char)(1 + (i * 7 + i / 251 + f) % 255);
        }
        if (long_texts[f].nul >= 0) {
            text[long_texts[f].nul] = '\0';
        }
        assert_int_equal(io_write_file(long_texts[f].name, text, (size_t)long_texts[f].bytes),
                         STATUS_OK);
    }
    free(text);
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

/* The file against the texts themselves; `binary`: those with a NUL byte count, too. */
static void expect_long_texts(const char *path, bool binary)
{
    struct token_store store;
    int64_t document = 0;
    uint16_t *ids = malloc(2 * (size_t)(4 * BATCH + 1));
    assert_non_null(ids);
    assert_int_equal(token_store_open(&store, path), STATUS_OK);
    for (int f = 0; f < LONG_TEXTS; f++) {
        const int64_t bytes = long_texts[f].bytes, at = store.document_offsets[document];
        char *text = NULL;
        size_t length = 0;
        if (long_texts[f].nul >= 0 && !binary && long_texts[f].name[2] == '/') {
            continue;
        }
        assert_int_equal(store.document_offsets[++document], at + bytes + 1);
        token_store_bytes(&store, TOKEN_PART_IDS, 2 * at, ids, 2 * (size_t)(bytes + 1));
        assert_int_equal(io_read_file(long_texts[f].name, &text, &length, 1 << 24), STATUS_OK);
        for (int64_t i = 0; i < bytes; i++) {
            if (ids[i] != (unsigned char)text[i]) {
                fail_msg("%s: byte %lld", long_texts[f].name, (long long)i);
            }
        }
        assert_int_equal(ids[bytes], 256);
        free(text);
    }
    assert_int_equal(store.documents, document);
    token_store_close(&store);
    free(ids);
}

static void test_texts_in_pieces(void **state)
{
    (void)state;
    struct prepare_summary first, summary;
    struct prepare_options options = request("whole.h5");
    put_long_texts();
    for (int binary = 0; binary < 2; binary++) {
        options.output = "whole.h5";
        options.keep_binary = binary != 0;
        options.dedup = true; /* whole */
        options.journal_seconds = 10;
        assert_int_equal(prepare_run(&options, &first), STATUS_OK);
        assert_int_equal(first.skipped_binary, binary ? 0 : 3);
        expect_long_texts("whole.h5", binary != 0);
        options.dedup = false;
        options.output = "pieces.h5";
        for (int workers = 1; workers <= 5; workers++) {
            options.workers = workers;
            options.journal_seconds = workers == 3 ? 0 : 10; /* after every batch */
            assert_int_equal(prepare_run(&options, &summary), STATUS_OK);
            assert_memory_equal(&first, &summary, sizeof first);
            expect_equal_files("whole.h5", "pieces.h5");
        }
    }
}

/* Asked to stop before the k-th round, then asked again. */
static int stop_in;
static bool stop(void)
{
    return stop_in-- == 0;
}

/* The same between any two pieces of a text, also of one that is left out. */
static void test_stops_between_pieces(void **state)
{
    (void)state;
    struct prepare_summary summary;
    struct prepare_options options = request("whole.h5");
    put_long_texts();
    assert_int_equal(prepare_run(&options, &summary), STATUS_OK);
    options.output = "out.h5";
    options.stop = stop;
    for (int batches = 1; batches <= 3; batches++) {
        int stops = 0;
        enum status status;
        do {
            stop_in = batches;
            status = prepare_run(&options, &summary);
            stops += status == STATUS_PREEMPTED;
        } while (status == STATUS_PREEMPTED && stops < 30);
        assert_int_equal(status, STATUS_OK);
        assert_true(stops > 4 && stops < 30);
        assert_int_equal(summary.skipped_binary, 3);
        expect_equal_files("whole.h5", "out.h5");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(test_texts_in_pieces),
        SCRATCH_TEST(test_stops_between_pieces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
