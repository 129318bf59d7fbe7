/* manifest: printed and read back; anything that is not exactly what was printed is refused. */
#include "unit/scratch.h"

#include <stdio.h>

#include "checkpoints/manifest.h"
#include "kernels/base/hash.h"
#include "kernels/base/rng.h"

static const int64_t BLOCK = MANIFEST_BLOCK_BYTES;

static struct manifest_piece piece(int64_t file, int64_t first, int64_t count, int64_t offset)
{
    return (struct manifest_piece){.file = file, .first = first, .count = count, .offset = offset};
}

/* Two files, three tensors in five pieces, added out of order. */
static void make(struct manifest *manifest)
{
    const uint64_t blocks[3] = {1, UINT64_MAX, 0x0123456789abcdefu};
    const struct manifest_tensor b = {.name = "b", .dtype = DTYPE_F32, .ndim = 1, .shape = {10}},
                                 a = {.name = "a/w",
                                      .dtype = DTYPE_BF16,
                                      .ndim = 2,
                                      .shape = {3, 1000}},
                                 c = {.name = "c", .dtype = DTYPE_F32, .ndim = 1, .shape = {4}};
    *manifest = (struct manifest){.step = 123456789012, .ranks = 2};
    assert_int_equal(manifest_add_file(manifest, "shard-00000.h5", 2 * BLOCK + 1, blocks),
                     STATUS_OK);
    assert_int_equal(manifest_add_file(manifest, "shard-00001.h5", 100, blocks), STATUS_OK);
    assert_int_equal(manifest_add_piece(manifest, &b, piece(1, 5, 5, 80)), STATUS_OK);
    assert_int_equal(manifest_add_piece(manifest, &a, piece(0, 1000, 2000, 4096)), STATUS_OK);
    assert_int_equal(manifest_add_piece(manifest, &a, piece(0, 0, 1000, 2 * BLOCK - 1999)),
                     STATUS_OK);
    assert_int_equal(manifest_add_piece(manifest, &c, piece(1, 0, 4, 0)), STATUS_OK);
    assert_int_equal(manifest_add_piece(manifest, &b, piece(0, 0, 5, 10)), STATUS_OK);
    assert_int_equal(manifest_seal(manifest), STATUS_OK);
}

static char *good_text(void)
{
    struct manifest manifest;
    make(&manifest);
    char *text = manifest_print(&manifest);
    assert_non_null(text);
    manifest_free(&manifest);
    return text;
}

static void test_round_trip(void **state)
{
    (void)state;
    struct manifest made, read;
    char *text = good_text();
    make(&made);
    assert_int_equal(manifest_parse(&read, "here", text), STATUS_OK);
    assert_int_equal(read.step, 123456789012);
    assert_int_equal(read.ranks, 2);
    assert_int_equal(read.files, 2);
    assert_int_equal(read.tensors, 3);
    for (int64_t i = 0; i < 2; i++) {
        assert_string_equal(read.file[i].name, made.file[i].name);
        assert_int_equal(read.file[i].bytes, made.file[i].bytes);
        for (int64_t b = 0; b < manifest_blocks(read.file[i].bytes); b++) {
            assert_true(read.file[i].block[b] == made.file[i].block[b]);
        }
    }
    for (int64_t i = 0; i < 3; i++) {
        const struct manifest_tensor *a = &made.tensor[i], *b = &read.tensor[i];
        assert_string_equal(a->name, b->name);
        assert_int_equal(a->pieces, b->pieces);
        assert_memory_equal(a->piece, b->piece, (size_t)a->pieces * sizeof a->piece[0]);
        assert_ptr_equal(manifest_find(&read, a->name), b);
    }
    assert_int_equal(manifest_find(&read, "a/w")->piece[0].first, 0); /* sorted */
    assert_null(manifest_find(&read, "d"));
    assert_null(manifest_find(&read, ""));
    char *again = manifest_print(&read);
    assert_string_equal(again, text);
    free(again);
    free(text);
    manifest_free(&made);
    manifest_free(&read);
    manifest_free(&read);
}

static void test_blocks_of_a_file(void **state)
{
    (void)state;
    assert_int_equal(manifest_blocks(0), 0);
    assert_int_equal(manifest_blocks(1), 1);
    assert_int_equal(manifest_blocks(BLOCK), 1);
    assert_int_equal(manifest_blocks(BLOCK + 1), 2);
    assert_true(manifest_blocks(INT64_MAX) == INT64_MAX / BLOCK + 1);
}

/* The text with its hash made right again, so that what lies behind the hash is met. */
static char *rehash(const char *text)
{
    const char *key = strstr(text, "\"manifest_hash\"");
    const size_t bytes = key != NULL ? (size_t)(key - text) : strlen(text);
    char *out = malloc(bytes + 64), hex[17];
    assert_non_null(out);
    memcpy(out, text, bytes);
    hash_hex(hex, hash_bytes(out, bytes));
    snprintf(out + bytes, 64, "\"manifest_hash\":\"%s\"}\n", hex);
    return out;
}

static enum status parse(const char *text)
{
    struct manifest manifest;
    const enum status status = manifest_parse(&manifest, "here/manifest.json", text);
    manifest_free(&manifest);
    return status;
}

static char *replaced(const char *text, const char *from, const char *to)
{
    const char *at = strstr(text, from);
    assert_non_null(at);
    char *out = malloc(strlen(text) + strlen(to) + 1);
    assert_non_null(out);
    sprintf(out, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    return out;
}

/* Whole by its hash, but not a manifest that this program can use. */
static void test_wrong_contents(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *part;
    } cases[] = {
        {"\"version\":1", "\"version\":3", "format version 3, this program reads 1 to 2"},
        {"\"version\":1", "\"version\":0", "format version 0, this program reads 1 to 2"},
        {"switchyard checkpoint", "some other thing", "a field is missing"},
        {"\"step\":123456789012", "\"step\":-1", "a field is missing"},
        {"\"step\":123456789012", "\"step\":1.5", "a field is missing"},
        {"\"block_bytes\":4194304", "\"block_bytes\":1", "format version"},
        {"\"shard-00000.h5\"", "\"../shard.h5\"", "a file entry"},
        {"\"shard-00000.h5\"", "\"a/b\"", "a file entry"},
        {"\"shard-00000.h5\"", "\"..\"", "a file entry"},
        {"\"shard-00000.h5\"", "\"\"", "a file entry"},
        {"\"shard-00000.h5\"", "7", "a file entry"},
        {"\"bytes\":100", "\"bytes\":9000000", "a file entry"},
        {"\"bytes\":100", "\"bytes\":-100", "a file entry"},
        {"\"bytes\":100", "\"bytes\":9223372036854775807", "a file entry"},
        {"\"bytes\":100", "\"bytes\":90", "outside its file"},
        {"\"0000000000000001\"", "\"not a hash\"", "a file entry"},
        {"\"0000000000000001\"", "17", "a file entry"},
        {"\"dtype\":\"float32\"", "\"dtype\":\"float31\"", "a tensor entry"},
        {"\"dtype\":\"float32\"", "\"dtype\":\"float64\"", "outside its file"},
        {"\"shape\":[10]", "\"shape\":[11]", "do not add up"},
        {"\"shape\":[10]", "\"shape\":[]", "a tensor entry"},
        {"\"shape\":[10]", "\"shape\":[-10]", "a tensor entry"},
        {"\"shape\":[10]", "\"shape\":[10,1,1,1,1]", "a tensor entry"},
        {"\"shape\":[10]", "\"shape\":[1099511627776,1099511627776,1099511627776,10]",
         "do not add up"},
        {"[1,5,5,80]", "[2,5,5,80]", "outside its file"},
        {"[1,5,5,80]", "[1,4,5,80]", "do not add up"},
        {"[1,5,5,80]", "[1,5,6,80]", "outside its file"},
        {"[1,5,5,80]", "[1,5,5,81]", "outside its file"},
        {"[1,5,5,80]", "[1,9223372036854775807,5,80]", "do not add up"},
        {"[1,5,5,80]", "[1,5,5,9223372036854775807]", "outside its file"},
        {"[1,5,5,80]", "[1,5,9223372036854775807,80]", "outside its file"},
        {"[1,5,5,80]", "[1,5,5]", "outside its file"},
        {"[1,5,5,80]", "null", "outside its file"},
        {"\"name\":\"c\"", "\"name\":\"b\"", "do not add up"},
        {"\"name\":\"c\"", "\"name\":null", "a tensor entry"},
        {"\"tensors\":[", "\"tensors\":[[],", "a tensor entry"},
        {"{\"format\"", "{\"step\":1,\"format\"", "a field is missing"}, /* duplicate key */
        {"{\"format\"", "\"format\"", "a field is missing"},             /* not JSON */
    };
    char *text = good_text();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *changed = replaced(text, cases[i].from, cases[i].to), *hashed = rehash(changed);
        assert_int_equal(parse(changed), STATUS_DATA);
        expect_message("here/manifest.json: damaged manifest: its own hash does not agree");
        if (parse(hashed) != STATUS_DATA) {
            fail_msg("accepted: %s for %s", cases[i].to, cases[i].from);
        }
        expect_message("here/manifest.json");
        expect_message(cases[i].part);
        free(changed);
        free(hashed);
    }
    free(text);
}

/* A matrix of 4 rows and 10 columns: columns 0 to 2 of all rows, the others in two pieces, of which
 * the second begins and ends within rows and is therefore three. */
static char *columns_text(void)
{
    static const struct manifest_piece pieces[] = {
        {.file = 0, .first = 3, .count = 7, .offset = 48},
        {.file = 0, .count = 12, .run = 3, .stride = 10},
        {.file = 0, .first = 13, .count = 14, .offset = 100, .run = 7, .stride = 10},
        {.file = 0, .first = 33, .count = 7, .offset = 200},
    };
    const uint64_t block = 7;
    const struct manifest_tensor like = {
        .name = "m", .dtype = DTYPE_F32, .ndim = 2, .shape = {4, 10}};
    struct manifest manifest = {.step = 1, .ranks = 1};
    assert_int_equal(manifest_add_file(&manifest, "shard-00000.h5", 1000, &block), STATUS_OK);
    for (size_t p = 0; p < sizeof pieces / sizeof pieces[0]; p++) {
        assert_int_equal(manifest_add_piece(&manifest, &like, pieces[p]), STATUS_OK);
    }
    assert_int_equal(manifest_seal(&manifest), STATUS_OK);
    char *text = manifest_print(&manifest);
    assert_non_null(text);
    manifest_free(&manifest);
    return text;
}

static void test_columns(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *part;
    } cases[] = {
        {"\"version\":2", "\"version\":1", "do not add up"},
        {"[0,0,12,0,3,10]", "[0,0,12,0,3]", "outside its file"},
        {"[0,0,12,0,3,10]", "[0,0,12,0,0,10]", "outside its file"},
        {"[0,0,12,0,3,10]", "[0,0,12,0,-3,10]", "outside its file"},
        {"[0,0,12,0,3,10]", "[0,0,12,0,3,11]", "do not add up"},
        {"[0,0,12,0,3,10]", "[0,0,12,0,4,10]", "do not add up"},
        {"[0,0,12,0,3,10]", "[0,0,12,0,12,10]", "do not add up"},
        {"[0,0,12,0,3,10]", "[0,0,9,0,3,10]", "do not add up"},
        {"[0,0,12,0,3,10]", "[0,0,11,0,3,10]", "do not add up"},
        {"[0,0,12,0,3,10]", "[0,1,12,0,3,10]", "do not add up"},
        {"[0,0,12,0,3,10]", "[0,8,12,0,3,10]", "do not add up"},
        {"[0,0,12,0,3,10]", "[0,9223372036854775807,12,0,3,10]", "do not add up"},
        {"[0,0,12,0,3,10]", "[0,0,9223372036854775806,0,3,10]", "outside its file"},
        {"[0,3,7,48]", "[0,3,9223372036854775807,48]", "outside its file"},
        {"[0,3,7,48]", "[0,4,7,48]", "do not add up"},
        {"[0,3,7,48]", "[0,3,6,48]", "do not add up"},
        {"[0,3,7,48]", "[0,3,8,48]", "do not add up"},
        {"\"shape\":[4,10]", "\"shape\":[40]", "do not add up"},
        {"\"shape\":[4,10]", "\"shape\":[4,0]", "do not add up"},
        {"\"shape\":[4,10]", "\"shape\":[1099511627776,1099511627776]", "do not add up"},
    };
    char *text = columns_text();
    struct manifest read;
    assert_int_equal(manifest_parse(&read, "here", text), STATUS_OK);
    assert_int_equal(read.tensor[0].pieces, 4);
    assert_int_equal(read.tensor[0].piece[0].run, 3);
    assert_int_equal(read.tensor[0].piece[1].run, 0);
    char *again = manifest_print(&read);
    assert_string_equal(again, text);
    free(again);
    manifest_free(&read);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *changed = replaced(text, cases[i].from, cases[i].to), *hashed = rehash(changed);
        if (parse(hashed) != STATUS_DATA) {
            fail_msg("accepted: %s for %s", cases[i].to, cases[i].from);
        }
        expect_message(cases[i].part);
        free(changed);
        free(hashed);
    }
    free(text);
}

static void test_every_byte_and_length_counts(void **state)
{
    (void)state;
    char *text = good_text();
    const size_t bytes = strlen(text);
    for (size_t at = 0; at < bytes; at++) {
        const char byte = text[at];
        text[at] = (char)(byte ^ (1 << at % 7));
        assert_int_equal(parse(text), STATUS_DATA);
        text[at] = '\0'; /* as if cut there */
        assert_int_equal(parse(text), STATUS_DATA);
        text[at] = byte;
    }
    assert_int_equal(parse(text), STATUS_OK);
    assert_int_equal(parse(""), STATUS_DATA);
    free(text);
}

/* Changed bytes under a right hash: read or refused, never a crash. */
static void test_mutations_never_crash(void **state)
{
    (void)state;
    static const char letters[] = "0123456789-.,:[]{}\"eabnull";
    int accepted = 0;
    char *text = good_text();
    const size_t bytes = strlen(text);
    for (uint64_t i = 0; i < 3000; i++) {
        char *changed = strdup(text);
        assert_non_null(changed);
        uint32_t bits[4];
        rng_bits(77, i, bits);
        for (uint32_t n = 0; n <= bits[3] % 3; n++) {
            changed[bits[n] % bytes] = letters[(bits[n] >> 16) % (sizeof letters - 1)];
        }
        char *hashed = rehash(changed);
        const enum status status = parse(hashed);
        assert_true(status == STATUS_OK || status == STATUS_DATA);
        accepted += status == STATUS_OK;
        free(hashed);
        free(changed);
    }
    assert_true(accepted > 20 && accepted < 2900);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_blocks_of_a_file),
        cmocka_unit_test(test_wrong_contents),
        cmocka_unit_test(test_columns),
        cmocka_unit_test(test_every_byte_and_length_counts),
        cmocka_unit_test(test_mutations_never_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
