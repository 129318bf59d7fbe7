/* token_store: whatever becomes of a read of a token file, opening it or while it is used, nothing
 * but the file's own tokens is taken for them: what fails is told by name, what is interrupted is
 * gone on with. */
#include "unit/scratch.h"

#include "data/loader.h"
#include "data/token_writer.h"
#include "kernels/base/rng.h"
#include "trainer/data_state.h"

enum { TOKENS = 200000, VOCAB = 500, DRAWS = 60 };

static uint32_t id_of(int64_t i)
{
    uint32_t bits[4];
    rng_bits(5, (uint64_t)i, bits);
    return i == 0 ? VOCAB - 1 : bits[0] % VOCAB;
}

static bool counts(int64_t i)
{
    return i % 7 != 3;
}

/* ours.h5: documents of 1000 tokens, a mask, a tokenizer's file. */
static void write_ours(void)
{
    static char text[5000];
    static uint32_t ids[1000];
    static uint8_t mask[1000];
    struct token_writer *writer = NULL;
    memset(text, 'x', sizeof text);
    const struct token_writer_options options = {.vocab_size = VOCAB,
                                                 .eos_id = 7,
                                                 .tokenizer = "bpe",
                                                 .tokenizer_hash = "abc",
                                                 .loss_mask = true,
                                                 .tokenizer_file = text,
                                                 .tokenizer_file_bytes = sizeof text};
    assert_int_equal(token_writer_open(&writer, "ours.h5", &options), STATUS_OK);
    for (int64_t at = 0; at < TOKENS; at += 1000) {
        for (int64_t i = 0; i < 1000; i++) {
            ids[i] = id_of(at + i);
            mask[i] = counts(at + i);
        }
        assert_int_equal(token_writer_add(writer, ids, mask, 1000), STATUS_OK);
    }
    assert_int_equal(token_writer_close(writer), STATUS_OK);
}

/* The same tokens as plain numbers, behind a header. */
static void write_plain(const char *path, const void *header, size_t bytes)
{
    static uint16_t ids[TOKENS];
    struct io_file file;
    for (int64_t i = 0; i < TOKENS; i++) {
        ids[i] = (uint16_t)id_of(i);
    }
    assert_int_equal(io_create(&file, path), STATUS_OK);
    assert_int_equal(io_write(&file, header, bytes), STATUS_OK);
    assert_int_equal(io_write(&file, ids, sizeof ids), STATUS_OK);
    assert_int_equal(io_close(&file), STATUS_OK);
}

/* meg.bin with meg.idx: sequences of 1000, each a document; llmc.bin. */
static void write_others(void)
{
    enum { SEQUENCES = TOKENS / 1000 };
    static const int32_t llmc[256] = {20240520, 1, TOKENS};
    struct io_file file;
    const unsigned char head[18] = "MMIDIDX\0\0\1\0\0\0\0\0\0\0\10";
    const uint64_t number[2] = {SEQUENCES, SEQUENCES + 1};
    int32_t length[SEQUENCES];
    int64_t offset[SEQUENCES], first[SEQUENCES + 1];
    for (int64_t i = 0; i <= SEQUENCES; i++) {
        first[i] = i;
        if (i < SEQUENCES) {
            length[i] = 1000;
            offset[i] = 2000 * i;
        }
    }
    assert_int_equal(io_create(&file, "meg.idx"), STATUS_OK);
    assert_int_equal(io_write(&file, head, sizeof head), STATUS_OK);
    assert_int_equal(io_write(&file, number, sizeof number), STATUS_OK);
    assert_int_equal(io_write(&file, length, sizeof length), STATUS_OK);
    assert_int_equal(io_write(&file, offset, sizeof offset), STATUS_OK);
    assert_int_equal(io_write(&file, first, sizeof first), STATUS_OK);
    assert_int_equal(io_close(&file), STATUS_OK);
    write_plain("meg.bin", "", 0);
    write_plain("llmc.bin", llmc, sizeof llmc);
}

static int enter(void **state)
{
    if (scratch_enter(state) != 0) {
        return 1;
    }
    write_ours();
    write_others();
    return 0;
}

/* What was taken of a file. */
struct taken {
    int64_t id[DRAWS];
    bool counts[DRAWS];
    uint64_t fingerprint, contents;
};

/* Opens it, looks at it as a run does, and takes tokens from all over it. */
static enum status take(const char *path, struct taken *taken)
{
    struct token_store store;
    enum status status = token_store_open(&store, path);
    status = status == STATUS_OK ? data_fingerprint(&store, &taken->fingerprint) : status;
    status = status == STATUS_OK ? token_store_contents(&store, &taken->contents) : status;
    for (int64_t i = 0; i < DRAWS && status == STATUS_OK; i++) {
        const int64_t at = (int64_t)(id_of(i + 1) * 7919LL * (i + 1) % TOKENS);
        taken->id[i] = token_store_get(&store, at);
        taken->counts[i] = token_store_counts(&store, at);
        assert_true(taken->id[i] >= 0 && taken->id[i] < VOCAB);
        if (token_store_status(&store) == STATUS_OK) { /* what is not told of is right */
            assert_int_equal(taken->id[i], id_of(at));
        }
    }
    status = status == STATUS_OK ? token_store_status(&store) : status;
    token_store_close(&store);
    return status;
}

static const char *const files[] = {"ours.h5", "meg.bin", "llmc.bin"};

/* Every read in turn, once and for good. */
static void test_every_read(void **state)
{
    (void)state;
    static const struct {
        enum io_fault fault;
        enum status status; /* wanted */
        const char *text;
    } kinds[] = {{IO_FAULT_EIO, STATUS_IO, "Input/output error"},
                 {IO_FAULT_CUT, STATUS_DATA, ""},
                 {IO_FAULT_EINTR, STATUS_OK, ""},
                 {IO_FAULT_SHORT, STATUS_OK, ""}};
    static struct taken expected, taken;
    for (size_t f = 0; f < sizeof files / sizeof files[0]; f++) {
        assert_int_equal(take(files[f], &expected), STATUS_OK);
        for (size_t kind = 0; kind < sizeof kinds / sizeof kinds[0]; kind++) {
            int64_t k = 1, told = 0;
            for (bool met = true; met; k += k < 100 ? 1 : 17) {
                io_fault_arm_reads(kinds[kind].fault, k, k % 2 == 0);
                memset(&taken, 0, sizeof taken);
                const enum status status = take(files[f], &taken);
                met = io_reads() >= k;
                io_fault_arm_reads(IO_FAULT_NONE, 0, false);
                if (status == STATUS_OK) { /* operations but reads of bytes cannot be cut */
                    assert_memory_equal(&taken, &expected, sizeof taken);
                } else {
                    assert_int_equal(status, kinds[kind].status);
                    expect_message(kinds[kind].text);
                    expect_message(f == 1 ? "meg." : files[f]);
                    told++;
                }
            }
            assert_true(k > 30 && (kinds[kind].status == STATUS_OK) == (told == 0));
        }
    }
}

/* One wrong bit: an id that the model knows, or it is told. */
static void test_flipped_bits(void **state)
{
    (void)state;
    for (size_t f = 0; f < sizeof files / sizeof files[0]; f++) {
        bool met = true;
        for (int64_t k = 1; met; k += k < 100 ? 1 : 17) {
            struct token_store store;
            io_fault_arm_reads(IO_FAULT_FLIP, k, false);
            const enum status status = token_store_open(&store, files[f]);
            for (int64_t i = 0; i < TOKENS && status == STATUS_OK; i += 97) {
                const int64_t id = token_store_get(&store, i);
                assert_true(id >= 0 && id < store.vocab_size);
            }
            met = io_reads() >= k;
            io_fault_arm_reads(IO_FAULT_NONE, 0, false);
            token_store_close(&store);
        }
    }
}

/* The file is cut, or written anew, while it is open. */
static void test_changed_while_open(void **state)
{
    (void)state;
    struct token_store store;
    struct io_file file;
    const uint16_t beyond = VOCAB;
    assert_int_equal(token_store_open(&store, "llmc.bin"), STATUS_OK);
    assert_int_equal(io_open_write(&file, "llmc.bin"), STATUS_OK);
    assert_int_equal(io_pwrite(&file, &beyond, sizeof beyond, 1024 + 2 * 70000), STATUS_OK);
    assert_int_equal(token_store_get(&store, 69999), id_of(69999));
    assert_int_equal(token_store_status(&store), STATUS_OK);
    assert_int_equal(token_store_get(&store, 70000), 0);
    assert_int_equal(token_store_status(&store), STATUS_DATA);
    expect_message("llmc.bin: token 70000 is 500, above the 499");
    token_store_close(&store);

    int32_t ids[1200]; /* the same among many taken at once; those round it are read */
    uint8_t counts[1200];
    assert_int_equal(io_pwrite(&file, &(uint16_t){0}, sizeof beyond, 1024 + 2 * 70000), STATUS_OK);
    assert_int_equal(token_store_open(&store, "llmc.bin"), STATUS_OK);
    assert_int_equal(io_pwrite(&file, &beyond, sizeof beyond, 1024 + 2 * 70000), STATUS_OK);
    token_store_run(&store, 69000, 1200, ids, counts);
    assert_int_equal(ids[999], id_of(69999));
    assert_int_equal(ids[1000], 0);
    assert_int_equal(ids[1001], id_of(70001));
    assert_int_equal(token_store_status(&store), STATUS_DATA);
    expect_message("llmc.bin: token 70000 is 500, above the 499");
    token_store_close(&store);

    assert_int_equal(io_truncate(&file, 1024 + 2 * TOKENS), STATUS_OK);
    const uint16_t good = (uint16_t)id_of(70000);
    assert_int_equal(io_pwrite(&file, &good, sizeof good, 1024 + 2 * 70000), STATUS_OK);
    assert_int_equal(token_store_open(&store, "llmc.bin"), STATUS_OK);
    assert_int_equal(io_truncate(&file, 40000), STATUS_OK);
    assert_int_equal(token_store_get(&store, 0), id_of(0));
    assert_int_equal(token_store_status(&store), STATUS_OK);
    assert_int_equal(token_store_get(&store, 20000), 0);
    assert_int_equal(token_store_status(&store), STATUS_DATA);
    expect_message("llmc.bin: ends at byte");
    expect_message("truncated");
    assert_int_equal(io_close(&file), STATUS_OK);
    token_store_close(&store);
}

/* What a checkpoint keeps of a file's contents: of samples, of all. */
static void look(const char *path, struct data_source_state *source)
{
    struct token_store store;
    assert_int_equal(token_store_open(&store, path), STATUS_OK);
    assert_int_equal(data_fingerprint(&store, &source->fingerprint), STATUS_OK);
    assert_int_equal(token_store_contents(&store, &source->contents), STATUS_OK);
    token_store_close(&store);
}

static void put_byte(const char *path, int64_t at, char byte)
{
    struct io_file file;
    assert_int_equal(io_open_write(&file, path), STATUS_OK);
    assert_int_equal(io_pwrite(&file, &byte, 1, at), STATUS_OK);
    assert_int_equal(io_close(&file), STATUS_OK);
}

/* A file that is rewritten between two runs, with ids that are as good: any one of them shows, also
 * where no sample lies; the same file by another name does not. */
static void test_rewritten(void **state)
{
    (void)state;
    enum { MANY = 5000001, HEAD = 1024 };
    static const int32_t header[256] = {20240520, 1, MANY};
    static uint16_t ids[MANY];
    static const char *const names[] = {"big.bin", "copy.bin"};
    struct data_source_state before = {0}, now = {0};
    int unseen = 0;
    ids[1] = 9; /* the vocabulary stays */
    for (int i = 0; i < 2; i++) {
        struct io_file file;
        assert_int_equal(io_create(&file, names[i]), STATUS_OK);
        assert_int_equal(io_write(&file, header, sizeof header), STATUS_OK);
        assert_int_equal(io_write(&file, ids, sizeof ids), STATUS_OK);
        assert_int_equal(io_close(&file), STATUS_OK);
    }
    look("big.bin", &before);
    look("copy.bin", &now);
    assert_true(before.contents == now.contents && data_state_same(&before, &now));
    for (int64_t token = 0; token < MANY; token += 357142) { /* the last, too */
        put_byte("big.bin", HEAD + 2 * token, 1);
        look("big.bin", &now);
        assert_false(data_state_same(&before, &now));
        unseen += before.fingerprint == now.fingerprint;
        const struct data_source_state old = {.fingerprint = before.fingerprint};
        assert_int_equal(data_state_same(&old, &now), before.fingerprint == now.fingerprint);
        put_byte("big.bin", HEAD + 2 * token, 0);
    }
    look("big.bin", &now);
    assert_true(unseen > 5 && data_state_same(&before, &now));
    struct token_store store;
    assert_int_equal(token_store_open(&store, "ours.h5"), STATUS_OK);
    const int64_t mask = store.mask_at + 3;
    assert_false(token_store_counts(&store, 3));
    token_store_close(&store);
    look("ours.h5", &before);
    put_byte("ours.h5", mask, 1);
    look("ours.h5", &now);
    assert_false(data_state_same(&before, &now));
}

#define FAULTS_TEST(function) cmocka_unit_test_setup_teardown(function, enter, scratch_leave)

int main(void)
{
    const struct CMUnitTest tests[] = {
        FAULTS_TEST(test_every_read),
        FAULTS_TEST(test_flipped_bits),
        FAULTS_TEST(test_changed_while_open),
        FAULTS_TEST(test_rewritten),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
