/* safetensors: written and read back; whatever is not exactly a whole model is refused by name. */
#include "unit/scratch.h"

#include <sys/stat.h>

#include "checkpoints/json_text.h"
#include "checkpoints/safetensors.h"
#include "kernels/base/rng.h"

static struct comm self;

/* A file of this header, then `data` bytes of data; length < 0: the header's own. */
static void put_file(const char *path, const char *header, int64_t length, size_t data)
{
    const size_t text = strlen(header), all = 8 + text + data;
    char *bytes = malloc(all);
    assert_non_null(bytes);
    const uint64_t stated = length < 0 ? text : (uint64_t)length;
    for (int i = 0; i < 8; i++) {
        bytes[i] = (char)(stated >> (8 * i) & 0xff);
    }
    memcpy(bytes + 8, header, text);
    for (size_t i = 0; i < data; i++) {
        bytes[8 + text + i] = (char)i;
    }
    assert_int_equal(io_write_file(path, bytes, all), STATUS_OK);
    free(bytes);
}

static void expect_refused_folder(const char *part)
{
    struct safetensors model;
    const enum status status = safetensors_open(&model, "m");
    safetensors_close(&model);
    if (status != STATUS_DATA) {
        fail_msg("status %d, expected a refusal with: %s", status, part);
    }
    expect_message(part);
    assert_null(strchr(status_message(), '\n'));
}

static void enter_folder(void)
{
    assert_int_equal(io_remove_tree("m"), STATUS_OK);
    assert_int_equal(io_make_dir("m"), STATUS_OK);
}

#define ENTRY(dtype, shape, begin, end)                                                            \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"

static void test_bad_headers(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        size_t data;
        const char *part;
    } cases[] = {
        {"", 8, "does not begin with '{'"},
        {" {}", 0, "does not begin with '{'"},
        {"[]", 0, "does not begin with '{'"},
        {"{", 0, "m/model.safetensors: line 1: "},
        {"{\"a\":1}x", 0, "m/model.safetensors: line 1: "},
        {"{\"a\":1}", 0, "dtype, shape and data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "dtype, shape and data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"b\":1}}", 4,
         "dtype, shape and data_offsets"},
        {"{\"a\":{\"dtype\":4,\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
         "dtype, shape and data_offsets"},
        {"{\"\":" ENTRY("F32", "[1]", 0, 4) "}", 4, "empty or too long"},
        {"{\"a\":" ENTRY("F8_E5M2", "[4]", 0, 4) "}", 4, "has dtype 'F8_E5M2'"},
        {"{\"a\":" ENTRY("f32", "[1]", 0, 4) "}", 4, "has dtype 'f32'"},
        {"{\"a\":" ENTRY("F32", "1", 0, 4) "}", 4, "shape is not a list"},
        {"{\"a\":" ENTRY("F32", "[-1]", 0, 4) "}", 4, "whole numbers"},
        {"{\"a\":" ENTRY("F32", "[1.0]", 0, 4) "}", 4, "whole numbers"},
        {"{\"a\":" ENTRY("F32", "[1,1,1,1,1]", 0, 4) "}", 4, "5 dimensions"},
        {"{\"a\":" ENTRY("F32", "[1]", -4, 4) "}", 4, "data_offsets"},
        {"{\"a\":" ENTRY("F32", "[1]", 4, 0) "}", 4, "data_offsets"},
        {"{\"a\":" ENTRY("F32", "[1]", 0, 9223372036854775807) "}", 4, "data_offsets"},
        {"{\"a\":" ENTRY("F32", "[1]", 0, 9223372036854775808) "}", 4,
         "m/model.safetensors: line 1: "},
        {"{\"a\":" ENTRY("F32", "[2]", 0, 4) "}", 4, "need 8 bytes, data_offsets give 4"},
        {"{\"a\":" ENTRY("F16", "[2]", 0, 8) "}", 8, "need 4 bytes, data_offsets give 8"},
        {"{\"a\":" ENTRY("F32", "[4611686018427387904]", 0, 4) "}", 4, "its shape"},
        {"{\"a\":" ENTRY("F32", "[4294967296,4294967296]", 0, 4) "}", 4, "its shape"},
        {"{\"a\":" ENTRY("U8", "[4294967296,2147483648,2]", 0, 4) "}", 4, "its shape"},
        {"{\"a\":" ENTRY("F32", "[1]", 4, 8) "}", 8, "a hole"},
        {"{\"a\":" ENTRY("F32", "[1]", 0, 4) ",\"b\":" ENTRY("F32", "[1]", 8, 12) "}", 12,
         "a hole"},
        {"{\"a\":" ENTRY("F32", "[2]", 0, 8) ",\"b\":" ENTRY("F32", "[1]", 4, 8) "}", 8,
         "they overlap"},
        {"{\"a\":" ENTRY("F32", "[1]", 0, 4) ",\"b\":" ENTRY("F32", "[1]", 0, 4) "}", 8,
         "they overlap"},
        {"{\"a\":" ENTRY("F32", "[1]", 0, 4) "}", 5, "bytes behind the last tensor"},
        {"{\"a\":" ENTRY("F32", "[1]", 0, 4) "}", 3, "truncated"},
        {"{\"a\":" ENTRY("F32", "[1]", 0, 4) "}", 0, "truncated"},
        {"{\"a\":" ENTRY("F32", "[1]", 0, 4) ",\"a\":" ENTRY("F32", "[1]", 4, 8) "}", 8,
         "duplicate object key"},
        {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
         "duplicate object key"},
        {"{\"__metadata__\":{\"format\":1}}", 0, "__metadata__ does not map"},
        {"{\"__metadata__\":7}", 0, "__metadata__ does not map"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        enter_folder();
        put_file("m/model.safetensors", cases[i].header, -1, cases[i].data);
        expect_refused_folder(cases[i].part);
        expect_message("m/model.safetensors");
    }
}

static void test_bad_lengths(void **state)
{
    (void)state;
    enter_folder();
    put("m/model.safetensors", "1234567");
    expect_refused_folder("7 bytes: too short");
    put_file("m/model.safetensors", "{}", 3, 0);
    expect_refused_folder("10 bytes, its header alone has 3: truncated");
    put_file("m/model.safetensors", "{}", 100000001, 0);
    expect_refused_folder("more than 100000000");
    put_file("m/model.safetensors", "{}", INT64_MAX, 0);
    expect_refused_folder("9223372036854775807 bytes");
    put_file("m/model.safetensors", "{}", -1, 0);
    struct safetensors model;
    assert_int_equal(safetensors_open(&model, "m"), STATUS_OK); /* empty, but whole */
    assert_int_equal(model.tensors, 0);
    safetensors_close(&model);
    safetensors_close(&model);
}

static void test_bad_folders(void **state)
{
    (void)state;
    struct safetensors model;
    assert_int_equal(safetensors_open(&model, "nowhere"), STATUS_IO);
    expect_message("nowhere: no such folder");
    enter_folder();
    expect_refused_folder("neither model.safetensors nor");
    assert_int_equal(mkfifo("m/model.safetensors", 0600), 0);
    expect_refused_folder("m/model.safetensors: is a pipe or a device, not a file");
    assert_int_equal(mkfifo("m/model.safetensors.index.json", 0600), 0);
    expect_refused_folder("index.json: is a pipe or a device, not a file");
    enter_folder();
    assert_int_equal(symlink("/dev/zero", "m/model.safetensors"), 0);
    expect_refused_folder("m/model.safetensors: is a pipe or a device, not a file");
    enter_folder();
    assert_int_equal(io_make_dir("m/model.safetensors"), STATUS_OK);
    expect_refused_folder("m/model.safetensors: is a folder, not a file");
}

static void test_nesting(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool shallow;
    } cases[] = {
        {"{\"a\":[[[[[[[1]]]]]]]}", true},
        {"{\"a\":[[[[[[[[1]]]]]]]]}", false},
        {"{\"[[[[[[[[[[\":\"{{{{{{{{{{\"}", true},
        {"[\"\\\"[[[[[[[[[[\",\"\\\\\",[[[[[[[[", false},
        {"[[],[],[],[],[],[],[],[],[],[]]", true},
        {"]]]]", true},
        {"\"\\", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(json_text_is_shallow(cases[i].text, strlen(cases[i].text)),
                         cases[i].shallow);
    }
    enter_folder();
    put_file("m/model.safetensors", "{\"a\":[[[[[[[[[[]]]]]]]]]]}", -1, 0);
    expect_refused_folder("m/model.safetensors: its JSON is nested deeper than 8 levels");
    json_t *json = NULL;
    put("long.json", "[1, 2, 3]");
    assert_int_equal(json_text_read(&json, "long.json", 8), STATUS_DATA);
    expect_message("long.json: 9 bytes, more than the 8");
    assert_int_equal(json_text_read(&json, "long.json", 9), STATUS_OK);
    json_decref(json);
    struct io_file file;
    assert_int_equal(io_create(&file, "m/model.safetensors.index.json"), STATUS_OK);
    assert_int_equal(io_truncate(&file, 100000001), STATUS_OK);
    assert_int_equal(io_close(&file), STATUS_OK);
    expect_refused_folder("index.json: 100000001 bytes, more than the 100000000");
}

static const char A[] = "{\"a\":" ENTRY("F32", "[1]", 0, 4) "}";
static const char B[] = "{\"b\":" ENTRY("F32", "[1]", 0, 4) "}";
static const char AB[] =
    "{\"a\":" ENTRY("F32", "[1]", 0, 4) ",\"b\":" ENTRY("F32", "[1]", 4, 8) "}";

static void test_bad_indexes(void **state)
{
    (void)state;
    static const struct {
        const char *index, *part;
    } cases[] = {
        {"", "index.json"},
        {"{\"weight_map\":{}}", "no weight_map"},
        {"{\"weight_map\":[]}", "no weight_map"},
        {"{\"map\":{\"a\":\"1.safetensors\"}}", "no weight_map"},
        {"{\"weight_map\":{\"a\":\"1.safetensors\",\"a\":\"1.safetensors\"}}", "duplicate"},
        {"{\"weight_map\":{\"a\":\"../m/1.safetensors\"}}", "a plain file name"},
        {"{\"weight_map\":{\"a\":\"..\"}}", "a plain file name"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "a plain file name"},
        {"{\"weight_map\":{\"a\":\"x/1.safetensors\"}}", "a plain file name"},
        {"{\"weight_map\":{\"a\":\"\"}}", "a plain file name"},
        {"{\"weight_map\":{\"a\":3}}", "(not text)"},
        {"{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"9.safetensors\"}}",
         "m/9.safetensors: missing"},
        {"{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"3.safetensors\"}}",
         "tensor 'a' is in m/"},
        {"{\"weight_map\":{\"a\":\"1.safetensors\",\"c\":\"2.safetensors\"}}",
         "tensor 'b' is not in m/model.safetensors.index.json"},
        {"{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\",\"c\":\"2.safetensors\"}"
         "}",
         "tensor 'c' is missing from 2.safetensors"},
        {"{\"weight_map\":{\"a\":\"2.safetensors\",\"b\":\"1.safetensors\"}}", "is said to be in"},
    };
    enter_folder();
    put_file("m/1.safetensors", A, -1, 4);
    put_file("m/2.safetensors", B, -1, 4);
    put_file("m/3.safetensors", AB, -1, 8);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        put("m/model.safetensors.index.json", cases[i].index);
        expect_refused_folder(cases[i].part);
    }
    struct safetensors model;
    put("m/model.safetensors.index.json",
        "{\"metadata\":{},\"weight_map\":{\"b\":\"2.safetensors\",\"a\":\"1.safetensors\"}}");
    assert_int_equal(safetensors_open(&model, "m"), STATUS_OK);
    assert_int_equal(model.tensors, 2);
    assert_string_equal(model.tensor[0].name, "a");
    safetensors_close(&model);
}

/* --- written and read back --- */

enum { TENSORS = 8 };
static const struct safetensors_tensor made[TENSORS] = {
    {.name = "z.weight", .dtype = DTYPE_F32, .ndim = 2, .shape = {3, 5}},
    {.name = "a \"quoted\" \xc3\xa9", .dtype = DTYPE_BF16, .ndim = 1, .shape = {7}},
    {.name = "half", .dtype = DTYPE_F16, .ndim = 3, .shape = {2, 3, 4}},
    {.name = "codes", .dtype = DTYPE_E4M3, .ndim = 2, .shape = {130, 3}},
    {.name = "empty", .dtype = DTYPE_F32, .ndim = 2, .shape = {0, 5}},
    {.name = "scalar", .dtype = DTYPE_I64, .ndim = 0},
    {.name = "large", .dtype = DTYPE_F32, .ndim = 2, .shape = {1100, 1000}}, /* beyond one block */
    {.name = "last", .dtype = DTYPE_U8, .ndim = 1, .shape = {1}},
};

static char byte_of(int64_t tensor, int64_t at)
{
    return (char)(at * 31 + at / 251 + tensor * 7);
}

static int64_t next_byte[TENSORS];

static enum status give(void *context, int64_t index, int64_t first, void *data, size_t bytes)
{
    (void)context;
    assert_int_equal(first, next_byte[index]); /* in order, once */
    for (size_t i = 0; i < bytes; i++) {
        ((char *)data)[i] = byte_of(index, first + (int64_t)i);
    }
    next_byte[index] += (int64_t)bytes;
    return STATUS_OK;
}

static void check_contents(int64_t files)
{
    struct safetensors model;
    assert_int_equal(safetensors_open(&model, "m"), STATUS_OK);
    assert_int_equal(model.files, files);
    assert_int_equal(model.tensors, TENSORS);
    for (int64_t t = 0; t < TENSORS; t++) {
        const struct safetensors_tensor *found = safetensors_find(&model, made[t].name);
        assert_non_null(found);
        assert_int_equal(found->dtype, made[t].dtype);
        assert_int_equal(found->ndim, made[t].ndim);
        assert_memory_equal(found->shape, made[t].shape, sizeof found->shape);
        char *data = malloc((size_t)found->bytes + 1);
        assert_non_null(data);
        const int64_t half = found->bytes / 2;
        assert_int_equal(safetensors_read(&model, found, half, data, (size_t)(found->bytes - half)),
                         STATUS_OK);
        for (int64_t i = half; i < found->bytes; i++) {
            assert_int_equal(data[i - half], byte_of(t, i));
        }
        free(data);
    }
    assert_null(safetensors_find(&model, "nothing"));
    safetensors_close(&model);
}

static void test_round_trip(void **state)
{
    (void)state;
    static const struct {
        int64_t most, shards;
    } cases[] = {{SAFETENSORS_SHARD_BYTES, 1}, {450, 4}, {1, 7}};
    struct safetensors_figures figures;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        enter_folder();
        memset(next_byte, 0, sizeof next_byte);
        assert_int_equal(
            safetensors_save(&self, "m", made, TENSORS, cases[i].most, give, NULL, &figures),
            STATUS_OK);
        assert_int_equal(figures.shards, cases[i].shards);
        assert_int_equal(figures.bytes, 60 + 14 + 48 + 390 + 8 + 4400000 + 1);
        assert_true(io_exists("m/model.safetensors") == (cases[i].shards == 1));
        assert_true(io_exists("m/model.safetensors.index.json") == (cases[i].shards > 1));
        check_contents(cases[i].shards);
    }
    assert_true(io_exists("m/model-00007-of-00007.safetensors"));
}

/* Data begins at a multiple of 8; the metadata that older readers ask for is there. */
static void test_written_form(void **state)
{
    (void)state;
    struct safetensors_figures figures;
    char *text = NULL;
    size_t bytes = 0;
    enter_folder();
    memset(next_byte, 0, sizeof next_byte);
    assert_int_equal(safetensors_save(&self, "m", made, 1, 100, give, NULL, &figures), STATUS_OK);
    assert_int_equal(io_read_file("m/model.safetensors", &text, &bytes, 4096), STATUS_OK);
    assert_int_equal(bytes % 8, 60 % 8);
    assert_int_equal(bytes, 8 + (size_t)(unsigned char)text[0] + 60);
    assert_non_null(strstr(text + 8,
                           "{\"__metadata__\":{\"format\":\"pt\"},\"z.weight\":"
                           "{\"dtype\":\"F32\",\"shape\":[3,5],\"data_offsets\":[0,60]}}"));
    free(text);
}

static enum status refuse(void *context, int64_t index, int64_t first, void *data, size_t bytes)
{
    (void)context;
    memset(data, 0, bytes);
    return index == 2 && first == 0 ? status_fail(STATUS_DATA, "no more of tensor 2") : STATUS_OK;
}

static void test_failed_saves(void **state)
{
    (void)state;
    struct safetensors_figures figures;
    enter_folder();
    assert_int_equal(safetensors_save(&self, "m", made, TENSORS, 1000, refuse, NULL, &figures),
                     STATUS_DATA);
    expect_message("no more of tensor 2");
    assert_false(io_exists("m/model.safetensors.index.json"));
    for (int64_t k = 1;; k++) { /* whichever operation fails, there is no model */
        enter_folder();
        memset(next_byte, 0, sizeof next_byte);
        io_fault_arm(IO_FAULT_ENOSPC, k, true);
        const enum status status =
            safetensors_save(&self, "m", made, TENSORS, 450, give, NULL, &figures);
        io_fault_arm(IO_FAULT_NONE, 0, false);
        if (status == STATUS_OK) {
            assert_true(k > 10);
            break;
        }
        assert_int_equal(status, STATUS_IO);
        struct safetensors model;
        /* the index is the last but one operation: after it only the folder's sync can fail */
        const enum status seen = safetensors_open(&model, "m");
        assert_true(seen == STATUS_DATA ||
                    (seen == STATUS_OK && io_exists("m/model.safetensors.index.json")));
        safetensors_close(&model);
    }
}

/* Changed headers: read or refused, never a crash, never a byte outside the file. */
static void test_mutations_never_crash(void **state)
{
    (void)state;
    static const char letters[] = "0123456789-.,:[]{}\"ae F";
    static const char good[] =
        "{\"__metadata__\":{\"format\":\"pt\"},\"a\":" ENTRY("F32", "[2,3]", 0, 24) ",\"b\":" ENTRY(
            "BF16", "[4]", 24, 32) ",\"c\":" ENTRY("U8", "[]", 32, 33) "}  ";
    int accepted = 0;
    enter_folder();
    for (uint64_t i = 0; i < 4000; i++) {
        char header[sizeof good];
        uint32_t bits[4];
        memcpy(header, good, sizeof good);
        rng_bits(99, i, bits);
        for (uint32_t n = 0; n <= bits[3] % 3; n++) {
            header[bits[n] % (sizeof good - 1)] = letters[(bits[n] >> 16) % (sizeof letters - 1)];
        }
        const bool length = (bits[3] >> 8) % 8 == 0;
        FILE *file = fopen("m/model.safetensors", "wb");
        assert_non_null(file);
        const uint64_t stated = length ? bits[0] >> (bits[1] % 32) : sizeof good - 1;
        char raw[8 + sizeof good - 1 + 33] = {0};
        for (int b = 0; b < 8; b++) {
            raw[b] = (char)(stated >> (8 * b) & 0xff);
        }
        memcpy(raw + 8, header, sizeof good - 1);
        fwrite(raw, 1, sizeof raw - (bits[2] % 16 == 0), file);
        fclose(file);
        struct safetensors model;
        const enum status status = safetensors_open(&model, "m");
        assert_true(status == STATUS_OK || status == STATUS_DATA);
        accepted += status == STATUS_OK;
        for (int64_t t = 0; t < model.tensors; t++) {
            char data[64];
            assert_in_range(model.tensor[t].bytes, 0, sizeof data);
            assert_int_equal(
                safetensors_read(&model, &model.tensor[t], 0, data, (size_t)model.tensor[t].bytes),
                STATUS_OK);
        }
        safetensors_close(&model);
    }
    assert_in_range(accepted, 20, 3000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(test_bad_headers),           SCRATCH_TEST(test_bad_lengths),
        SCRATCH_TEST(test_bad_folders),           SCRATCH_TEST(test_nesting),
        SCRATCH_TEST(test_bad_indexes),           SCRATCH_TEST(test_round_trip),
        SCRATCH_TEST(test_written_form),          SCRATCH_TEST(test_failed_saves),
        SCRATCH_TEST(test_mutations_never_crash),
    };
    return comm_open(&self, "self") != STATUS_OK || cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
