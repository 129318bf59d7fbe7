/* token_share: ranks look at a token file together: each at its part, all of it between them; what
 * one of them meets every rank is told; a file of its own is looked at whole. */
#include <unistd.h>

#include "data/token_share.h"
#include "data/token_writer.h"
#include "kernels/base/io.h"
#include "ranks.h"

enum { MOST_PATH = 512, TOKENS = 4 << 20, VOCAB = 300, PIECES = 8 + 4 }; /* of 1 MiB: ids, mask */

/* A file whose token `bad` is none of its vocabulary; -1: all are. */
static void write_file(struct comm *world, const char *path, int64_t bad)
{
    static uint16_t ids[TOKENS];
    static uint8_t mask[TOKENS];
    static const int64_t length = TOKENS;
    const struct token_writer_options options = {
        .vocab_size = VOCAB, .eos_id = -1, .tokenizer = "none", .tokenizer_hash = "none"};
    struct token_writer *writer = NULL;
    for (int64_t i = 0; i < TOKENS; i++) {
        ids[i] = (uint16_t)(i == bad ? VOCAB : i * 7 % (VOCAB - 1));
        mask[i] = i % 5 != 0;
    }
    const struct token_block block = {
        .tokens = ids, .mask = mask, .lengths = &length, .count = TOKENS, .documents = 1};
    CHECK_EQUAL(world, token_writer_open(&writer, path, &options), STATUS_OK);
    CHECK_EQUAL(world, token_writer_put(writer, (struct token_position){0}, &block), STATUS_OK);
    token_writer_reach(writer, (struct token_position){TOKENS, 1}, true);
    CHECK_EQUAL(world, token_writer_close(writer), STATUS_OK);
}

/* A folder of all ranks; `own`: the file of each rank is its own. */
static void make_file(struct comm *world, char folder[MOST_PATH], char path[2 * MOST_PATH],
                      bool own, int64_t bad)
{
    if (world->rank == 0) {
        snprintf(folder, MOST_PATH, "%s/switchyard-test-XXXXXX",
                 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
        CHECK(world, mkdtemp(folder) != NULL);
    }
    comm_broadcast(world, folder, MOST_PATH, 0);
    snprintf(path, 2 * MOST_PATH, "%s/data%d.h5", folder, own ? world->rank : 0);
    if (own || world->rank == 0) {
        write_file(world, path, bad);
    }
    comm_barrier(world);
}

static void drop_folder(struct comm *world, const char *folder)
{
    comm_barrier(world);
    if (world->rank == 0) {
        CHECK_EQUAL(world, io_remove_tree(folder), STATUS_OK);
    }
    comm_barrier(world);
}

/* Reads of an open beside those of the pieces. */
static int64_t other_reads(struct comm *world, const char *path)
{
    struct token_store store;
    io_fault_arm_reads(IO_FAULT_NONE, 0, false);
    CHECK_EQUAL(world, token_store_open(&store, path), STATUS_OK);
    token_store_close(&store);
    return io_reads() - 8;
}

static void check_contents(struct comm *world, bool own)
{
    char folder[MOST_PATH], path[2 * MOST_PATH];
    struct token_store alone, shared;
    uint64_t expected = 0, contents = 0;
    make_file(world, folder, path, own, -1);
    const int64_t other = other_reads(world, path);
    CHECK_EQUAL(world, token_store_open(&alone, path), STATUS_OK);
    CHECK_EQUAL(world, token_store_contents(&alone, &expected), STATUS_OK);
    io_fault_arm_reads(IO_FAULT_NONE, 0, false);
    CHECK_EQUAL(world, token_share_open(&shared, path, world), STATUS_OK);
    CHECK_EQUAL(world, token_store_contents(&shared, &contents), STATUS_OK);
    CHECK_EQUAL(world, io_reads() - other, own ? PIECES : PIECES / world->size);
    CHECK(world, contents == expected);
    CHECK_EQUAL(world, shared.largest_id, alone.largest_id);
    CHECK_EQUAL(world, shared.tokens, TOKENS);
    token_store_close(&alone);
    token_store_close(&shared);
    drop_folder(world, folder);
}

static void test_contents(struct comm *world)
{
    check_contents(world, false);
    check_contents(world, true);
}

/* The same status and words everywhere. */
static void expect_told(struct comm *world, enum status status, enum status wanted,
                        const char *words)
{
    char first[1024] = "";
    snprintf(first, sizeof first, "%s", status_message());
    comm_broadcast(world, first, sizeof first, 0);
    CHECK_EQUAL(world, status, wanted);
    CHECK_MESSAGE(world, words);
    CHECK_MESSAGE(world, first);
}

/* Any read of one rank fails. */
static void test_one_rank_fails(struct comm *world)
{
    char folder[MOST_PATH], path[2 * MOST_PATH];
    struct token_store store;
    make_file(world, folder, path, false, -1);
    const int64_t reads = other_reads(world, path) + PIECES / world->size;
    for (int rank = 0; rank < world->size; rank++) {
        for (int64_t k = 1; k <= reads; k++) {
            io_fault_arm_reads(world->rank == rank ? IO_FAULT_EIO : IO_FAULT_NONE, k, false);
            expect_told(world, token_share_open(&store, path, world), STATUS_IO, "data0.h5");
            io_fault_arm_reads(IO_FAULT_NONE, 0, false);
            token_store_close(&store);
        }
    }
    drop_folder(world, folder);
}

/* An id that is none stands in a piece of any rank. */
static void test_bad_ids(struct comm *world)
{
    for (int64_t piece = 0; piece < 8; piece += 3) {
        char folder[MOST_PATH], path[2 * MOST_PATH];
        struct token_store store;
        make_file(world, folder, path, false, piece * (TOKENS / 8) + 5);
        expect_told(world, token_share_open(&store, path, world), STATUS_DATA,
                    "token id 300, but its vocab_size is 300");
        token_store_close(&store);
        drop_folder(world, folder);
    }
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_contents),
        RANKS_TEST(test_one_rank_fails),
        RANKS_TEST(test_bad_ids),
    };
    return RANKS_MAIN(tests);
}
