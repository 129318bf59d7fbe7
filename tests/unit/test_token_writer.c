/* token_writer: the same file whether a thread writes it past the page cache or not; whatever its
 * thread's writes meet, nothing is published that is not whole; operations have the same order in
 * every run. */
#include "unit/scratch.h"

#include "data/token_store.h"
#include "data/token_writer.h"
#include "kernels/base/hash.h"
#include "kernels/base/rng.h"

enum { DOCUMENTS = 300, LONG = 30000, VOCAB = 300, PIECE = 3 * IO_ALIGNMENT };

static int64_t length_of(int64_t document)
{
    uint32_t bits[4];
    rng_bits(7, (uint64_t)document, bits);
    return document == 40 ? LONG : 1 + bits[0] % 700;
}

static uint32_t id_of(int64_t document, int64_t i)
{
    return (uint32_t)(document * 31 + i * 7) % VOCAB;
}

/* Writes all documents; `sync_every`: that many are followed by a sync, 0: none is; those whose
 * number is a multiple of `mask_every` have a mask. */
struct work {
    const char *path;
    bool shared;
    size_t piece_bytes;
    int64_t vocab, documents, sync_every, mask_every;
};

static enum status add(struct token_writer *writer, const struct work *work, int64_t document,
                       struct token_position *at)
{
    static uint16_t narrow[LONG];
    static uint32_t wide[LONG];
    static uint8_t mask[LONG];
    const int64_t length = work->documents > DOCUMENTS ? 1 : length_of(document);
    const bool masked = work->mask_every > 0 && document % work->mask_every == 0;
    for (int64_t i = 0; i < length; i++) {
        narrow[i] = (uint16_t)id_of(document, i);
        wide[i] = narrow[i];
        mask[i] = i % 3 != 0;
    }
    const struct token_block block = {
        .tokens = token_writer_width(work->vocab) == 2 ? (const void *)narrow : wide,
        .mask = masked ? mask : NULL,
        .lengths = &length,
        .count = length,
        .documents = 1};
    const enum status status = token_writer_put(writer, *at, &block);
    at->tokens += length;
    at->documents++;
    return status;
}

static enum status add_all(struct token_writer *writer, const struct work *work)
{
    struct token_position at = {0};
    for (int64_t d = 0; d < work->documents; d++) {
        TRY(add(writer, work, d, &at));
        if (work->sync_every > 0 && d % work->sync_every == work->sync_every - 1) {
            TRY(token_writer_sync(writer));
        }
    }
    token_writer_reach(writer, at, work->mask_every > 0);
    return STATUS_OK;
}

static enum status write_file(const struct work *work)
{
    const struct token_writer_options options = {.vocab_size = work->vocab,
                                                 .eos_id = 7,
                                                 .tokenizer = "bytes",
                                                 .tokenizer_hash = "x",
                                                 .shared = work->shared,
                                                 .piece_bytes = work->piece_bytes};
    struct token_writer *writer = NULL;
    enum status status = token_writer_open(&writer, work->path, &options);
    status = status == STATUS_OK ? add_all(writer, work) : status;
    if (status != STATUS_OK) {
        token_writer_abandon(writer);
        return status;
    }
    return token_writer_close(writer);
}

static void good(enum status status)
{
    if (status != STATUS_OK) {
        fail_msg("status %d: %s", status, status_message());
    }
}

static bool equal_files(const char *a, const char *b)
{
    char *data[2];
    size_t bytes[2];
    good(io_read_file(a, &data[0], &bytes[0], 1 << 28));
    good(io_read_file(b, &data[1], &bytes[1], 1 << 28));
    const bool equal = bytes[0] == bytes[1] && memcmp(data[0], data[1], bytes[0]) == 0;
    free(data[0]);
    free(data[1]);
    return equal;
}

static void expect_documents(const struct work *work)
{
    struct token_store store;
    int64_t at = 0;
    good(token_store_open(&store, work->path));
    assert_int_equal(store.documents, work->documents);
    for (int64_t d = 0; d < work->documents; d++) {
        const int64_t length = store.document_offsets[d + 1] - store.document_offsets[d];
        assert_int_equal(length, work->documents > DOCUMENTS ? 1 : length_of(d));
        for (int64_t i = 0; i < length; i++, at++) {
            const bool masked = work->mask_every > 0 && d % work->mask_every == 0;
            assert_int_equal(token_store_get(&store, at), id_of(d, i));
            assert_int_equal(token_store_counts(&store, at), !masked || i % 3 != 0);
        }
    }
    good(token_store_status(&store));
    token_store_close(&store);
}

static void test_same_file(void **state)
{
    (void)state;
    for (int kind = 0; kind < 5; kind++) {
        struct work work = {.path = "shared.h5",
                            .shared = true,
                            .vocab = kind == 1 ? 70000 : VOCAB,
                            .documents = kind == 4 ? 70000 : DOCUMENTS,
                            .sync_every = kind == 2 ? 17 : 0,
                            .mask_every = kind == 3 ? 20 : 0};
        good(write_file(&work));
        expect_documents(&work);
        work.shared = false;
        work.path = "queued.h5";
        for (size_t piece = 0; piece <= 4 * PIECE; piece += PIECE) {
            work.piece_bytes = piece; /* 0: all of it is one */
            good(write_file(&work));
            assert_true(equal_files("shared.h5", "queued.h5"));
        }
    }
}

static const struct work queued = {.path = "out.h5",
                                   .piece_bytes = PIECE,
                                   .vocab = VOCAB,
                                   .documents = DOCUMENTS,
                                   .sync_every = 90,
                                   .mask_every = 50};

static struct {
    uint64_t hash; /* of all events in their order */
    int64_t count;
} seen;

static void see(void *context, const struct io_event *event)
{
    (void)context;
    const uint64_t parts[] = {seen.hash, event->kind, hash_bytes(event->path, strlen(event->path)),
                              (uint64_t)event->bytes, (uint64_t)event->offset};
    seen.hash = hash_bytes(parts, sizeof parts);
    seen.count++;
}

/* The k-th operation is the same one in every run, though two threads have them. */
static void test_order(void **state)
{
    (void)state;
    uint64_t first = 0;
    io_observe(see, NULL);
    for (int round = 0; round < 20; round++) {
        seen.hash = 0;
        seen.count = 0;
        good(write_file(&queued));
        assert_true(seen.count > 2 * DOCUMENTS * 350 / PIECE);
        first = round == 0 ? seen.hash : first;
        assert_true(seen.hash == first);
    }
    io_observe(NULL, NULL);
}

/* Any operation, once and for good: told by the file's name, or done again where a signal came. */
static void test_errors(void **state)
{
    (void)state;
    static const enum io_fault kinds[] = {IO_FAULT_EIO, IO_FAULT_ENOSPC, IO_FAULT_EINTR,
                                          IO_FAULT_SHORT};
    struct work whole = queued;
    whole.path = "whole.h5";
    good(write_file(&whole));
    for (size_t kind = 0; kind < 2 * sizeof kinds / sizeof kinds[0]; kind++) {
        const bool sticky = kind % 2 != 0, fails = kind < 4;
        int64_t k = 1, failures = 0;
        for (bool met = true; met; k++) {
            io_fault_arm(kinds[kind / 2], k, sticky);
            const enum status status = write_file(&queued);
            met = io_operations() >= k;
            io_fault_arm(IO_FAULT_NONE, 0, false);
            assert_true(status == STATUS_OK || (status == STATUS_IO && fails));
            if (status == STATUS_OK) {
                assert_true(equal_files("out.h5", "whole.h5"));
                good(io_remove("out.h5"));
            } else {
                expect_message("out.h5");
                assert_false(io_exists("out.h5"));
                failures++;
            }
        }
        assert_true(!fails || failures > 30);
    }
}

static enum status write_queued(void)
{
    return write_file(&queued);
}

static void test_killed(void **state)
{
    (void)state;
    static const enum io_fault kinds[] = {IO_FAULT_KILL_TORN, IO_FAULT_KILL_AFTER};
    struct work whole = queued;
    int64_t whole_files = 0;
    whole.path = "whole.h5";
    good(write_file(&whole));
    for (size_t kind = 0; kind < 2; kind++) {
        int64_t k = 1;
        for (; killed(write_queued, kinds[kind], k); k += 2) {
            if (io_exists("out.h5")) {
                assert_true(equal_files("out.h5", "whole.h5"));
                good(io_remove("out.h5"));
                whole_files++;
            }
        }
        good(io_remove("out.h5"));
        assert_true(k > 40);
    }
    assert_true(whole_files > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(test_same_file),
        SCRATCH_TEST(test_order),
        SCRATCH_TEST(test_errors),
        SCRATCH_TEST(test_killed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
