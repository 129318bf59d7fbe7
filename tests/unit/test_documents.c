/* What prepare reads: packed files come out whole or are refused; folders are listed in order, by
 * pattern and size; documents are the same however many share the batches and wherever they begin;
 * lines of .jsonl are what they say; a set knows what it has seen. */
#define _GNU_SOURCE
#include "unit/scratch.h"

#include <zlib.h>
#include <zstd.h>

#include "data/document_line.h"
#include "data/document_set.h"
#include "data/documents.h"
#include "kernels/base/rng.h"

static void good(enum status status)
{
    if (status != STATUS_OK) {
        fail_msg("status %d: %s", status, status_message());
    }
}

static uint32_t draw(uint64_t key, uint64_t index, uint32_t below)
{
    uint32_t bits[4];
    rng_bits(key, index, bits);
    return bits[0] % below;
}

static void put_bytes(const char *path, const struct byte_list *bytes)
{
    good(io_write_file(path, bytes->data, bytes->count));
}

/* Two members or frames, one after another. */
static void put_packed(const char *gz, const char *zst, const struct byte_list *bytes)
{
    const size_t half = bytes->count / 2, room = ZSTD_compressBound(bytes->count) + 64;
    char *packed = malloc(room);
    assert_non_null(packed);
    size_t count = ZSTD_compress(packed, room, bytes->data, half, 1);
    count +=
        ZSTD_compress(packed + count, room - count, bytes->data + half, bytes->count - half, 1);
    good(io_write_file(zst, packed, count));
    free(packed);
    gzFile file = gzopen(gz, "wb1");
    assert_int_equal(gzwrite(file, bytes->data, (unsigned)half), (int)half);
    gzclose(file);
    file = gzopen(gz, "ab1");
    assert_int_equal(gzwrite(file, bytes->data + half, (unsigned)(bytes->count - half)),
                     (int)(bytes->count - half));
    gzclose(file);
}

/* Lines of 0 to 200 bytes, and some very long ones; no newline at the end. */
static struct byte_list make_lines(int lines, uint32_t longest)
{
    struct byte_list out = {0};
    for (int i = 0; i < lines; i++) {
        const uint32_t length = draw(1, (uint64_t)i, 100) == 0 ? draw(2, (uint64_t)i, longest)
                                                               : draw(3, (uint64_t)i, 200);
        good(byte_list_reserve(&out, length + 1));
        for (uint32_t c = 0; c < length; c++) {
            out.data[out.count++] = (char)('a' + (c * 7 + (uint32_t)i) % 26);
        }
        if (i + 1 < lines) {
            out.data[out.count++] = '\n';
        }
    }
    return out;
}

/* --- unpack --- */

static enum status read_all(const char *path, size_t piece, struct byte_list *out)
{
    struct unpack unpack;
    out->count = 0;
    enum status status = unpack_open(&unpack, path, unpack_kind(path));
    for (size_t got = 1; status == STATUS_OK && got > 0;) {
        good(byte_list_reserve(out, piece));
        status = unpack_read(&unpack, out->data + out->count, piece, &got);
        assert_true(status != STATUS_OK || got <= piece);
        out->count += status == STATUS_OK ? got : 0;
    }
    unpack_close(&unpack);
    unpack_close(&unpack);
    return status;
}

static void test_unpack(void **state)
{
    (void)state;
    static const char *const names[] = {"a.txt", "a.gz", "a.zst"};
    static const size_t pieces[] = {1 << 20, 65536, 1000, 7};
    struct byte_list text = make_lines(2000, 60000), back = {0};
    put_bytes(names[0], &text);
    put_packed(names[1], names[2], &text);
    for (int kind = 0; kind < 3; kind++) {
        for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++) {
            good(read_all(names[kind], pieces[i], &back));
            assert_int_equal(back.count, text.count);
            assert_memory_equal(back.data, text.data, text.count);
        }
    }
    byte_list_free(&text);
    byte_list_free(&back);
}

/* Cut anywhere, or with a byte changed: an error that names it, or (between two members, or where
 * the format does not look) less or other text; never a crash. */
static void test_unpack_damaged(void **state)
{
    (void)state;
    static const char *const names[] = {"a.gz", "a.zst"};
    struct byte_list text = make_lines(300, 3000), back = {0};
    put_packed(names[0], names[1], &text);
    for (int kind = 0; kind < 2; kind++) {
        char *data = NULL, name[16];
        size_t bytes = 0;
        int refused = 0, tried = 0;
        snprintf(name, sizeof name, "bad.%s", names[kind] + 2);
        good(io_read_file(names[kind], &data, &bytes, 1 << 24));
        for (size_t at = 1; at < bytes; at += bytes / 150) {
            good(io_write_file(name, data, at));
            const enum status cut = read_all(name, 5000, &back);
            data[at] ^= 0x40;
            good(io_write_file(name, data, bytes));
            const enum status changed = read_all(name, 5000, &back);
            data[at] ^= 0x40;
            assert_true(cut == STATUS_OK || cut == STATUS_DATA);
            assert_true(changed == STATUS_OK || changed == STATUS_DATA);
            if (changed == STATUS_DATA) {
                expect_message(name);
            }
            refused += (cut == STATUS_DATA) + (changed == STATUS_DATA);
            tried += 2;
        }
        assert_true(refused > tried / 2 - 5); /* every cut; zstd frames here have no checksum */
        free(data);
    }
    byte_list_free(&text);
    byte_list_free(&back);
}

/* --- lists of files --- */

static void expect_files(const struct input_filter *filter, const char *expected)
{
    static char input[] = "in";
    char *const inputs[] = {input};
    struct input_files files;
    char names[256] = "";
    struct input_filter own = *filter;
    own.output = "in/out.h5";
    good(input_files_list(&files, inputs, 1, &own));
    for (int64_t i = 0; i < files.count; i++) {
        const size_t length = strlen(names);
        snprintf(names + length, sizeof names - length, "%s%s", i > 0 ? " " : "",
                 files.file[i].path + 3);
    }
    assert_string_equal(names, expected);
    input_files_free(&files);
    input_files_free(&files);
}

static void test_input_files(void **state)
{
    (void)state;
    static const char *const files[] = {"in/b.c",       "in/a.h",       "in/sub/c.c",
                                        "in/sub/d.txt", "in/.git/x.c",  "in/sub/e.txt.gz",
                                        "in/out.h5",    "in/out.h5.tmp"};
    static const char *const c[] = {"*.c"}, *const text[] = {"*.txt", "*.txt.gz"},
                             *const below[] = {"sub/*.c"}, *const git[] = {".git", "a.*"},
                             *const none[] = {"*"};
    good(io_make_dir("in/sub"));
    good(io_make_dir("in/.git"));
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        put(files[i], "0123456789" + i); /* 10 bytes, 9, ... */
    }
    expect_files(&(struct input_filter){0}, ".git/x.c a.h b.c sub/c.c sub/d.txt sub/e.txt.gz");
    expect_files(&(struct input_filter){.include = c, .include_count = 1}, ".git/x.c b.c sub/c.c");
    expect_files(&(struct input_filter){.include = text, .include_count = 2},
                 "sub/d.txt sub/e.txt.gz");
    expect_files(&(struct input_filter){.include = below, .include_count = 1}, "sub/c.c");
    expect_files(&(struct input_filter){.exclude = git, .exclude_count = 2},
                 "b.c sub/c.c sub/d.txt sub/e.txt.gz");
    expect_files(&(struct input_filter){.exclude = none, .exclude_count = 1}, "");
    expect_files(&(struct input_filter){.least_bytes = 7, .most_bytes = 9},
                 "a.h sub/c.c sub/d.txt");
}

/* --- batches --- */

struct seen {
    int64_t count;
    struct hash128 hash[8192];
    int64_t line[8192];
    bool too_long[8192];
};

/* What a message would say, 0 without a line; counting lines is slow: -1 for most of those that
 * must be counted. */
static int64_t line_of(const struct input_files *files, const struct document *document,
                       int64_t number)
{
    char where[4200];
    if (document->line == 0 && files->file[document->file].lines && number % 200 != 0) {
        return -1;
    }
    document_where(files, document, where, sizeof where);
    const char *colon = strrchr(where, ':');
    return colon != NULL ? atoll(colon + 1) : 0;
}

/* All documents of files, read by `readers` in turn from batch `first` on. */
static int64_t read_documents(const struct input_files *files, int64_t most, int64_t first,
                              int readers, struct seen *seen)
{
    struct documents documents[4];
    struct document_batch batch[4] = {{0}};
    bool more[4];
    int64_t batches = 0;
    seen->count = 0;
    for (int r = 0; r < readers; r++) {
        good(documents_open(&documents[r], files, most, first + r, readers));
    }
    for (bool any = true; any;) {
        any = false;
        for (int r = 0; r < readers; r++) {
            good(documents_next(&documents[r], &batch[r], &more[r]));
            any = any || more[r];
            for (int64_t d = 0; more[r] && d < batch[r].count; d++) {
                const struct document *document = &batch[r].document[d];
                seen->line[seen->count] = line_of(files, document, seen->count);
                seen->too_long[seen->count] = document->too_long;
                seen->hash[seen->count++] =
                    hash_bytes_128(batch[r].text.data + document->at, document->bytes, 0);
            }
            batches += more[r];
        }
    }
    for (int r = 0; r < readers; r++) {
        documents_close(&documents[r]);
        document_batch_free(&batch[r]);
    }
    return batches;
}

static void expect_seen(const struct seen *seen, const struct seen *all, int64_t from)
{
    assert_int_equal(seen->count, all->count - from);
    for (int64_t i = 0; i < seen->count; i++) {
        assert_true(seen->line[i] == -1 || seen->line[i] == all->line[from + i]);
        assert_int_equal(seen->too_long[i], all->too_long[from + i]);
        if (!seen->too_long[i]) {
            assert_memory_equal(&seen->hash[i], &all->hash[from + i], sizeof seen->hash[i]);
        }
    }
}

/* The lines as a plain program cuts them. */
static void cut_lines(const struct byte_list *text, int64_t most, struct seen *seen)
{
    int64_t line = 1;
    for (size_t at = 0; at < text->count; line++) {
        const char *end = memchr(text->data + at, '\n', text->count - at);
        const size_t bytes = (end != NULL ? (size_t)(end - text->data) + 1 : text->count) - at;
        seen->line[seen->count] = line;
        seen->too_long[seen->count] = (int64_t)bytes > most;
        seen->hash[seen->count++] = hash_bytes_128(text->data + at, bytes, 0);
        at += bytes;
    }
}

/* Each of the names alone, then all of them: as many readers as there are, from any batch on. */
static void test_batches(void **state)
{
    (void)state;
    static char names[3][16] = {"a.jsonl", "b.jsonl.gz", "c.jsonl.zst"};
    static struct seen all, seen;
    static const int64_t limits[] = {1 << 28, 70000};
    struct byte_list text = make_lines(2500, 3 << 20);
    const struct input_filter filter = {.output = "out.h5"};
    put_bytes(names[0], &text);
    put_packed(names[1], names[2], &text);
    for (size_t limit = 0; limit < 2; limit++) {
        for (int which = 0; which < 3; which++) {
            char *const inputs[] = {names[which]};
            struct input_files files;
            good(input_files_list(&files, inputs, 1, &filter));
            all.count = 0;
            cut_lines(&text, limits[limit], &all);
            int64_t batches = 0;
            for (int readers = 1; readers <= 4; readers += readers) {
                batches = read_documents(&files, limits[limit], 0, readers, &seen);
                expect_seen(&seen, &all, 0);
            }
            assert_true(batches > 10);
            for (int64_t first = 1; first <= batches + 1;
                 first += limit == 0 && which == 0 && !counts_thin() ? 1 : 5) {
                read_documents(&files, limits[limit], first, 1 + (int)(first % 3 == 0), &seen);
                expect_seen(&seen, &all, all.count - seen.count);
            }
            read_documents(&files, limits[limit], batches, 2, &seen);
            assert_int_equal(seen.count, 0);
            input_files_free(&files);
        }
    }
    byte_list_free(&text);
}

/* Whole files: small ones share a batch, packed and empty ones are documents too. */
static void test_text_batches(void **state)
{
    (void)state;
    static char input[] = "in";
    static struct seen all, seen;
    char *const inputs[] = {input};
    const struct input_filter filter = {.output = "out.h5"};
    struct input_files files;
    good(io_make_dir("in"));
    for (int i = 0; i < 40; i++) {
        struct byte_list text = make_lines(1 + i * i % 900, 20000);
        char name[32], gz[32], zst[32];
        snprintf(name, sizeof name, "in/%02d.txt", i);
        snprintf(gz, sizeof gz, "in/%02d.txt.gz", i);
        snprintf(zst, sizeof zst, "in/%02d.txt.zst", i);
        put_bytes(name, &text);
        if (i % 10 == 0) {
            put_packed(gz, zst, &text);
        }
        byte_list_free(&text);
    }
    good(input_files_list(&files, inputs, 1, &filter));
    const int64_t batches = read_documents(&files, 1 << 28, 0, 1, &all);
    assert_int_equal(all.count, 48);
    assert_int_equal(files.count, 48);
    assert_true(batches > 8 && batches < 30);
    for (int i = 0; i < 40; i += 10) { /* the packed ones lie behind their file */
        const int64_t at = i + i / 10 * 2;
        assert_memory_equal(&all.hash[at], &all.hash[at + 1], sizeof all.hash[0]);
        assert_memory_equal(&all.hash[at], &all.hash[at + 2], sizeof all.hash[0]);
    }
    for (int readers = 2; readers <= 4; readers++) {
        read_documents(&files, 1 << 28, 0, readers, &seen);
        expect_seen(&seen, &all, 0);
    }
    input_files_free(&files);
}

/* --- lines --- */

static void test_lines(void **state)
{
    (void)state;
    struct document_line line = {0};
    static const char said[] = "{\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, "
                               "{\"role\": \"assistant\", \"content\": \"a\\u0000b\", \"x\": 1}]}",
                      ids[] = "{\"tokens\": [1, 70000], \"loss_mask\": [0, 1], \"text\": \"no\"}",
                      large[] = "\xef\xbb\xbf{\"text\": \"t\", \"hash\": 18446744073709551615}";
    good(document_parse(&line, said, strlen(said)));
    assert_int_equal(line.kind, DOCUMENT_MESSAGES);
    assert_int_equal(line.message_count, 2);
    assert_int_equal(line.messages[0].role, CHAT_SYSTEM);
    assert_int_equal(line.messages[1].role, CHAT_ASSISTANT);
    assert_int_equal(line.messages[1].bytes, 3);
    assert_memory_equal(line.messages[1].text, "a\0b", 3);
    good(document_parse(&line, ids, strlen(ids)));
    assert_int_equal(line.kind, DOCUMENT_TOKENS);
    assert_int_equal(line.ids.count, 2);
    assert_int_equal(line.ids.data[1], 70000);
    assert_memory_equal(line.mask.data, "\0\1", 2);
    good(document_parse(&line, large, strlen(large)));
    assert_int_equal(line.kind, DOCUMENT_TEXT);
    assert_int_equal(line.text_bytes, 1);
    static const struct {
        const char *line, *part;
    } bad[] = {
        {"{\"messages\": []}", "\"messages\" must be a list"},
        {"{\"messages\": {}}", "\"messages\" must be a list"},
        {"{\"messages\": [5]}", "message 0: \"role\""},
        {"{\"messages\": [{\"role\": \"user\"}]}", "message 0: needs \"content\", a text"},
        {"{\"messages\": [{\"role\": \"tool\", \"content\": \"\"}]}", "not tool"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": [\"a\"]}]}", "needs \"content\""},
        {"{\"messages\": [{\"role\": \"assistant\", \"content\": \"\", \"tool_calls\": [1]}]}",
         "\"tool_calls\" are not built"},
        {"{\"tokens\": [18446744073709551616]}", "token 0 is not a whole number"},
        {"{\"message\": \"\"}", "needs \"text\""},
        {"", "not JSON"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(document_parse(&line, bad[i].line, strlen(bad[i].line)), STATUS_DATA);
        expect_message(bad[i].part);
    }
    document_line_free(&line);
    document_line_free(&line);
}

/* --- sets --- */

static void test_set(void **state)
{
    (void)state;
    struct document_set set = {0};
    bool added;
    for (int again = 0; again < 2; again++) {
        for (uint64_t i = 0; i < 20000; i++) { /* every low half ten times, zero among them */
            good(document_set_add(&set, (struct hash128){i / 10, i % 10}, &added));
            assert_int_equal(added, again == 0 && i != 1); /* 0 stands for (0, 1) */
        }
    }
    assert_int_equal(set.count, 19999);
    document_set_free(&set);
    document_set_free(&set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(test_unpack),       SCRATCH_TEST(test_unpack_damaged),
        SCRATCH_TEST(test_input_files),  SCRATCH_TEST(test_batches),
        SCRATCH_TEST(test_text_batches), cmocka_unit_test(test_lines),
        cmocka_unit_test(test_set),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
