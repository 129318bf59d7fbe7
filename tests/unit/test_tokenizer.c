/* tokenizer: UTF-8, patterns, merges and files against what they are by definition; what a file
 * asks for and is not built is refused by name. (That ids are those of the tokenizers library is
 * tests/cli/test_tokenizer_files.sh's.) */
#include "unit/scratch.h"

#include "data/pattern.h"
#include "data/tokenizer.h"
#include "data/utf8.h"
#include "kernels/base/rng.h"

static const char FILES[] = SOURCE_DIR "/tests/tokenizers/files/";

static void good(enum status status)
{
    if (status != STATUS_OK) {
        fail_msg("status %d: %s", status, status_message());
    }
}

/* --- utf8 --- */

/* Every character is written and read back; every shorter part of it is none. */
static void test_utf8_characters(void **state)
{
    (void)state;
    for (uint32_t c = 0; c < 0x110000; c++) {
        char text[4];
        if (c >= 0xd800 && c < 0xe000) {
            continue;
        }
        const int length = utf8_write(text, c);
        assert_int_equal(utf8_length(text, 4), length);
        assert_int_equal(utf8_character(text, length), c);
        for (int i = 1; i < length; i++) {
            assert_int_equal(utf8_length(text, (size_t)i), 0);
            assert_int_equal(utf8_length(text + i, (size_t)(length - i)), 0);
            assert_int_equal(utf8_bad(text, (size_t)i), i);
        }
    }
}

/* Of all sequences of three bytes, as many are well formed as there are characters. */
static void test_utf8_bytes(void **state)
{
    (void)state;
    int64_t count[4] = {0};
    for (uint32_t bits = 0; bits < 1u << 24; bits++) {
        const char text[3] = {(char)(bits >> 16), (char)(bits >> 8), (char)bits};
        const int length = utf8_length(text, 3);
        count[length]++;
        if (length == 0) {
            const size_t bad = utf8_bad(text, 3);
            assert_true(bad >= 1 && bad <= 3);
        }
    }
    assert_int_equal(count[1], 128 * 65536);
    assert_int_equal(count[2], 1920 * 256);
    assert_int_equal(count[3], 65536 - 2048 - 2048);
    assert_int_equal(utf8_prefix("plain ASCII of more than 8\xff", 27), 26);
    assert_int_equal(utf8_prefix("\xf4\x90\x80\x80", 4), 0); /* U+110000 */
    assert_int_equal(utf8_bad("\xf4\x90\x80\x80", 4), 1);
    assert_int_equal(utf8_bad("\xe2\x82 ", 3), 2);
}

/* --- patterns --- */

static void test_patterns(void **state)
{
    static const struct {
        const char *pattern, *expected; /* or a part of the message */
        enum status status;
    } cases[] = {
        {" ?[^\\r\\n\\p{L}]+", " ?[^\\r\\n\\p{L}]+", STATUS_OK},
        {"\\P{Lu}\\p{^N}[\\p{^Lu}]", "\\P{Lu}\\P{N}[\\P{Lu}]", STATUS_OK},
        {"\\p{Han}\\u4e00[\\v]", "\\p{sc:Han}\\x{4e00}[\\x0b]", STATUS_OK},
        {"(?i:'s)|a{1,3}|[]a]", "(?i:'s)|a{1,3}|[\\]a]", STATUS_OK},
        {"\\w+", "'\\w'", STATUS_DATA},
        {"a\\b", "'\\b'", STATUS_DATA},
        {"[a[b]]", "'['", STATUS_DATA},
        {"[a-z&&b]", "'&&'", STATUS_DATA},
        {"[\\S]", "'\\S'", STATUS_DATA},
        {"a{1,3}+", "'{1,3}+'", STATUS_DATA},
        {"a{,3}", "'{,3}'", STATUS_DATA},
        {"(?m:a)", "'(?m:'", STATUS_DATA},
        {"(*UTF)a", "'(*'", STATUS_DATA},
        {"a(?<n>b)", "'(?<n'", STATUS_DATA},
        {"\\p{L", "'\\p'", STATUS_DATA},
        {"\\", "nothing after", STATUS_DATA},
        {"\\xff", "'\\xff'", STATUS_DATA},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct byte_list out = {0};
        const char *pattern = cases[i].pattern;
        assert_int_equal(pattern_translate(&out, pattern, strlen(pattern), false), cases[i].status);
        if (cases[i].status == STATUS_OK) {
            assert_string_equal(out.data, cases[i].expected);
        } else {
            expect_parts(&cases[i].expected, 1, pattern);
        }
        byte_list_free(&out);
    }
}

/* --- merges --- */

enum { LETTERS = 4, MERGES = 60, WORD = 300 };

struct merge_case {
    struct token_table tokens;
    struct bpe bpe;
};

/* Random merges of what there is so far: letters 'a'..'d', then their joins. */
static void make_merges(struct merge_case *m, uint64_t key)
{
    for (int byte = 0; byte < 256; byte++) {
        const char text = (char)byte;
        good(token_table_add(&m->tokens, byte, &text, 1));
    }
    good(bpe_init(&m->bpe, &m->tokens, MERGES, false));
    for (uint64_t i = 0; m->bpe.count < MERGES && i < 5000; i++) {
        uint32_t bits[4];
        size_t bytes[2];
        char both[64];
        const char *part[2];
        rng_bits(key, i, bits);
        const uint32_t made = (uint32_t)m->tokens.size - 256;
        for (int side = 0; side < 2; side++) {
            const uint32_t pick = bits[side] % (LETTERS + made);
            part[side] = token_table_text(&m->tokens, pick < LETTERS ? 'a' + pick : 252 + pick,
                                          &bytes[side]);
        }
        if (bytes[0] + bytes[1] > 8) {
            continue;
        }
        memcpy(both, part[0], bytes[0]);
        memcpy(both + bytes[0], part[1], bytes[1]);
        if (token_table_find(&m->tokens, both, bytes[0] + bytes[1]) == TOKEN_NONE) {
            good(token_table_add(&m->tokens, m->tokens.size, both, bytes[0] + bytes[1]));
        }
        char left[8], right[8]; /* adding may move the table */
        memcpy(left, both, bytes[0]);
        memcpy(right, both + bytes[0], bytes[1]);
        const uint32_t a = (uint32_t)token_table_find(&m->tokens, left, bytes[0]),
                       b = (uint32_t)token_table_find(&m->tokens, right, bytes[1]);
        if (bpe_find_merge(&m->bpe, a, b) == NULL) {
            good(bpe_add_merge(&m->bpe, left, bytes[0], right, bytes[1]));
        }
    }
}

/* By the definition: the pair of lowest rank, the leftmost of equals, until there is none. */
static size_t merge_slowly(const struct bpe *bpe, uint32_t *ids, size_t count)
{
    for (;;) {
        const struct bpe_merge *best = NULL;
        size_t where = 0;
        for (size_t i = 0; i + 1 < count; i++) {
            const struct bpe_merge *merge = bpe_find_merge(bpe, ids[i], ids[i + 1]);
            if (merge != NULL && (best == NULL || merge->rank < best->rank)) {
                best = merge;
                where = i;
            }
        }
        if (best == NULL) {
            return count;
        }
        ids[where] = best->id;
        memmove(ids + where + 1, ids + where + 2, (count - where - 2) * sizeof *ids);
        count--;
    }
}

static void test_merges(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct merge_case m = {0};
        struct bpe_scratch scratch = {0};
        struct id_list out = {0};
        make_merges(&m, seed);
        assert_true(m.bpe.count >= 30);
        for (uint64_t w = 0; w < 100; w++) {
            uint32_t ids[WORD];
            char word[WORD];
            const size_t bytes =
                1 + (size_t)(rng_uniform(seed + 100, w) * (w % 4 == 0 ? WORD : 30));
            for (size_t i = 0; i < bytes; i++) {
                word[i] = (char)('a' + (int)(rng_uniform(w + 1000 * seed, i) * LETTERS));
                ids[i] = (unsigned char)word[i];
            }
            const size_t count = merge_slowly(&m.bpe, ids, bytes);
            for (int again = 0; again < 2; again++) { /* and out of the cache */
                out.count = 0;
                good(bpe_encode(&m.bpe, &scratch, word, bytes, &out));
                assert_int_equal(out.count, count);
                assert_memory_equal(out.data, ids, count * sizeof *ids);
            }
        }
        id_list_free(&out);
        bpe_scratch_free(&scratch);
        bpe_free(&m.bpe);
        token_table_free(&m.tokens);
    }
}

/* --- files --- */

static void open_file(struct tokenizer *tokenizer, const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s%s", FILES, name);
    good(tokenizer_open(tokenizer, path));
}

/* Whatever the bytes, they come back. */
static void test_any_bytes(void **state)
{
    static const char *const names[] = {"deepseek_v3.json", "deepseek_coder.json", "tekken.json",
                                        "gpt2.json"};
    (void)state;
    for (size_t n = 0; n < sizeof names / sizeof names[0]; n++) {
        struct tokenizer tokenizer;
        struct encoder encoder;
        struct id_list ids = {0};
        struct byte_list text = {0};
        open_file(&tokenizer, names[n]);
        good(encoder_open(&encoder, &tokenizer));
        for (uint64_t i = 0; i < 2000; i++) {
            char bytes[64];
            uint32_t bits[4];
            const size_t count = (size_t)(i % 64);
            for (size_t j = 0; j < count; j++) {
                rng_bits(i, j, bits); /* bytes, or pieces of characters, or letters */
                bytes[j] = (char)(bits[1] % 3 == 0   ? bits[0] % 256
                                  : bits[1] % 3 == 1 ? 0x80 + bits[0] % 128
                                                     : ' ' + bits[0] % 64);
            }
            ids.count = text.count = 0;
            good(encoder_run(&encoder, bytes, count, &ids));
            good(tokenizer_decode(&tokenizer, ids.data, (int64_t)ids.count, &text));
            assert_int_equal(text.count, count);
            assert_memory_equal(count > 0 ? text.data : "", bytes, count);
        }
        byte_list_free(&text);
        id_list_free(&ids);
        encoder_close(&encoder);
        tokenizer_close(&tokenizer);
    }
}

/* A megabyte without a place to cut takes no longer than others: in steps, not in their square. */
static void test_long_word(void **state)
{
    enum { BYTES = 1 << 20 };
    struct tokenizer tokenizer;
    struct encoder encoder;
    struct id_list ids = {0};
    struct byte_list text = {0};
    char *word = malloc(BYTES);
    (void)state;
    assert_non_null(word);
    for (int i = 0; i < BYTES; i++) {
        word[i] = (char)('a' + i * 7 % 26);
    }
    open_file(&tokenizer, "llama3.json");
    good(encoder_open(&encoder, &tokenizer));
    good(encoder_run(&encoder, word, BYTES, &ids));
    good(tokenizer_decode(&tokenizer, ids.data, (int64_t)ids.count, &text));
    assert_int_equal(text.count, BYTES);
    assert_memory_equal(text.data, word, BYTES);
    memset(word, ' ', BYTES);
    good(encoder_run(&encoder, word, BYTES, &ids));
    byte_list_free(&text);
    id_list_free(&ids);
    encoder_close(&encoder);
    tokenizer_close(&tokenizer);
    free(word);
}

static void test_bytes(void **state)
{
    struct tokenizer tokenizer;
    struct encoder encoder;
    struct id_list ids = {0};
    struct byte_list text = {0};
    char every[256];
    (void)state;
    for (int i = 0; i < 256; i++) {
        every[i] = (char)i;
    }
    good(tokenizer_open(&tokenizer, "bytes"));
    good(encoder_open(&encoder, &tokenizer));
    good(encoder_run(&encoder, every, 256, &ids));
    good(tokenizer_decode(&tokenizer, ids.data, 256, &text));
    assert_int_equal(text.count, 256);
    assert_memory_equal(text.data, every, 256);
    const int32_t mixed[] = {'h', 'i', TOKENIZER_BYTES_EOS, 0xc3, 0xa9, 300, -1, 7, '\n'};
    text.count = 0;
    good(tokenizer_show(&tokenizer, mixed, 9, &text));
    assert_string_equal(text.data, "hi<eos>\xc3\xa9...\n");
    const uint32_t none = 257;
    assert_int_equal(tokenizer_decode(&tokenizer, &none, 1, &text), STATUS_DATA);
    expect_message("257");
    byte_list_free(&text);
    id_list_free(&ids);
    encoder_close(&encoder);
    tokenizer_close(&tokenizer);
}

static void test_ends(void **state)
{
    static const char *const configs[] = {"{\"eos_token\": \"</s>\"}",
                                          "{\"eos_token\": {\"content\": \"</s>\"}}"};
    struct tokenizer tokenizer;
    char *data = NULL, path[4096];
    size_t bytes = 0;
    (void)state;
    open_file(&tokenizer, "gpt2.json");
    assert_int_equal(tokenizer.eos_id, tokenizer_find(&tokenizer, "<|endoftext|>"));
    assert_int_equal(tokenizer.bos_id, tokenizer_find(&tokenizer, "<s>"));
    tokenizer_close(&tokenizer);
    snprintf(path, sizeof path, "%sgpt2.json", FILES);
    good(io_read_file(path, &data, &bytes, 1 << 26));
    good(io_write_file("tokenizer.json", data, bytes));
    free(data);
    for (int i = 0; i < 2; i++) {
        put("tokenizer_config.json", configs[i]);
        good(tokenizer_open(&tokenizer, "tokenizer.json"));
        assert_int_equal(tokenizer.eos_id, tokenizer_find(&tokenizer, "</s>"));
        assert_true(tokenizer.eos_id >= 0);
        tokenizer_close(&tokenizer);
    }
    put("tokenizer_config.json", "{\"eos_token\": \"<nowhere>\"}");
    assert_int_equal(tokenizer_open(&tokenizer, "tokenizer.json"), STATUS_DATA);
    expect_message("tokenizer_config.json: eos_token '<nowhere>'");
    tokenizer_close(&tokenizer);
}

/* Parts of a file that is read, each to be replaced. */
static const char PARTS[4][256] = {
    "{\"id\": 300, \"content\": \"<x>\", \"special\": true}", "null",
    "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": true}",
    "\"type\": \"BPE\", \"merges\": [\"a b\"], "};

static void put_tokenizer(const char *const parts[4], const char *vocab)
{
    char text[16384];
    size_t used = (size_t)snprintf(
        text, sizeof text,
        "{\"added_tokens\": [%s], \"normalizer\": %s, \"pre_tokenizer\": %s, \"model\": {%s"
        "\"vocab\": {%s",
        parts[0], parts[1], parts[2], parts[3], vocab);
    int other = 256;
    for (int byte = 0; byte < 256; byte++) { /* GPT-2's alphabet */
        const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
        const int code = printable ? byte : other++;
        used += (size_t)snprintf(text + used, sizeof text - used, "\"\\u%04x\": %d, ",
                                 (unsigned)code, byte);
    }
    snprintf(text + used, sizeof text - used, "\"ab\": 256}}}");
    put("t.json", text);
}

static void test_refused(void **state)
{
    static const struct {
        int part; /* which of PARTS; 4: of the vocabulary */
        const char *text, *expected;
    } cases[] = {
        {0, "{\"id\": 300, \"content\": \"<x>\", \"lstrip\": true}", "lstrip of added token '<x>'"},
        {0, "{\"id\": 5, \"content\": \"<x>\"}", "id 5"},
        {0, "{\"id\": 300}", "lacks its id or content"},
        {0, "{\"id\": -1, \"content\": \"<x>\"}", "token id -1"},
        {1, "{\"type\": \"NFKC\"}", "normalizer 'NFKC' is not built"},
        {1, "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Lowercase\"}]}",
         "'Lowercase'"},
        {2, "null", "without pre-tokenizer 'ByteLevel'"},
        {2, "{\"type\": \"Metaspace\"}", "pre-tokenizer 'Metaspace' is not built"},
        {2, "{\"type\": \"ByteLevel\", \"add_prefix_space\": true}", "add_prefix_space"},
        {2,
         "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"\\\\w\"}, \"behavior\": \"Isolated\"}",
         "'\\w'"},
        {2, "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"a(\"}, \"behavior\": \"Isolated\"}",
         "pattern 'a('"},
        {2, "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"a\"}, \"behavior\": \"Contiguous\"}",
         "'Contiguous'"},
        {3, "\"type\": \"Unigram\", \"merges\": [], ", "model 'Unigram' is not built"},
        {3, "\"byte_fallback\": true, \"merges\": [], ", "take the model's tokenizer.model"},
        {3, "\"merges\": [\"a c\"], ", "merge 0 needs token 'ac'"},
        {3, "\"merges\": [\"ab\"], ", "merge 0 is not two tokens"},
        {3, "", "lacks its vocab or merges"},
        {4, "\"zz\": 97, ", "id 97"},
        {4, "\"zz\": 1.5, ", "'zz' is no whole number"},
        {4, "\"zz\": 99999999, ", "99999999"},
    };
    struct tokenizer tokenizer;
    const char *parts[4] = {PARTS[0], PARTS[1], PARTS[2], PARTS[3]};
    (void)state;
    put_tokenizer(parts, "");
    good(tokenizer_open(&tokenizer, "t.json"));
    tokenizer_close(&tokenizer);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (int part = 0; part < 4; part++) {
            parts[part] = part == cases[i].part ? cases[i].text : PARTS[part];
        }
        put_tokenizer(parts, cases[i].part == 4 ? cases[i].text : "");
        assert_int_equal(tokenizer_open(&tokenizer, "t.json"), STATUS_DATA);
        const char *const expected[2] = {"t.json: ", cases[i].expected};
        expect_parts(expected, 2, cases[i].text);
        tokenizer_close(&tokenizer);
    }
    put("t.json", "{\"model\":");
    assert_int_equal(tokenizer_open(&tokenizer, "t.json"), STATUS_DATA);
    expect_message("t.json:1: not JSON");
    tokenizer_close(&tokenizer);
    put("t.json", "{\"config\": {}}");
    assert_int_equal(tokenizer_open(&tokenizer, "t.json"), STATUS_DATA);
    expect_message("Tekken");
    tokenizer_close(&tokenizer);
    assert_int_equal(tokenizer_open(&tokenizer, "nowhere.json"), STATUS_IO);
    tokenizer_close(&tokenizer);
}

/* A file cut or with a byte changed anywhere is read or refused, never more. */
static void test_damaged(void **state)
{
    struct tokenizer tokenizer;
    const char *const parts[4] = {PARTS[0], PARTS[1], PARTS[2], PARTS[3]};
    char *data = NULL;
    size_t bytes = 0;
    (void)state;
    put_tokenizer(parts, "");
    good(io_read_file("t.json", &data, &bytes, 1 << 20));
    for (uint64_t i = 0; i < 1500; i++) {
        uint32_t bits[4];
        rng_bits(9, i, bits);
        const size_t at = bits[0] % bytes, count = bits[1] % 4 == 0 ? at : bytes;
        const char before = data[at];
        data[at] = bits[1] % 4 == 1 ? (char)bits[2] : "{}[]\",:0"[bits[2] % 8];
        const enum status status = tokenizer_read(&tokenizer, "t", data, count);
        assert_true(status == STATUS_OK || status == STATUS_DATA);
        tokenizer_close(&tokenizer);
        data[at] = before;
    }
    free(data);
}

static void test_damaged_model(void **state)
{
    struct tokenizer tokenizer;
    char path[4096], *data = NULL;
    size_t bytes = 0;
    (void)state;
    snprintf(path, sizeof path, "%ssentencepiece.model", FILES);
    good(io_read_file(path, &data, &bytes, 1 << 20));
    for (uint64_t i = 0; i < 300; i++) { /* a build without the library refuses all alike */
        uint32_t bits[4];
        rng_bits(11, i, bits);
        const size_t at = bits[0] % bytes, count = bits[1] % 2 == 0 ? at : bytes;
        const char before = data[at];
        data[at] = (char)bits[2];
        const enum status status = tokenizer_read(&tokenizer, "m", data, count);
        assert_true(status == STATUS_OK || status == STATUS_DATA);
        tokenizer_close(&tokenizer);
        data[at] = before;
    }
    free(data);
}

/* White space alone, of exactly the bytes it has: no byte behind them is looked at (under the
 * address sanitizer). */
static void test_only_space(void **state)
{
    struct tokenizer tokenizer;
    char *data = malloc(2);
    (void)state;
    assert_non_null(data);
    memcpy(data, "\r\n", 2);
    for (size_t bytes = 0; bytes <= 2; bytes++) {
        assert_int_equal(tokenizer_read(&tokenizer, "t", data, bytes), STATUS_DATA);
        expect_message("t:");
        tokenizer_close(&tokenizer);
    }
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_utf8_characters),
        cmocka_unit_test(test_utf8_bytes),
        cmocka_unit_test(test_patterns),
        cmocka_unit_test(test_merges),
        cmocka_unit_test(test_any_bytes),
        cmocka_unit_test(test_long_word),
        cmocka_unit_test(test_bytes),
        SCRATCH_TEST(test_ends),
        SCRATCH_TEST(test_refused),
        SCRATCH_TEST(test_damaged),
        cmocka_unit_test(test_damaged_model),
        cmocka_unit_test(test_only_space),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
