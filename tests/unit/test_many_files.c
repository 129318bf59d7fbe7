/* checkpoint_read of matrices whose columns lie in more files than a few: row by row each block is
 * read once, or, of more files than are kept open, most of them. The files are made by hand.
 */
#include "unit/scratch.h"

#include "checkpoints/checkpoint.h"
#include "checkpoints/manifest.h"
#include "kernels/base/hash.h"

enum { ROWS = 64, EACH = 4, OPEN = 64, STEP_ROWS = 2, STEPS = ROWS / STEP_ROWS, MOST_FILES = 80 };
enum { READS = 2 }; /* of a file of one block: when it is opened, and the block */

static uint32_t value(int matrix, int64_t at)
{
    return (uint32_t)(at + 1) * 2654435761u + (uint32_t)matrix;
}

/* Columns [part * EACH, + EACH) of a matrix in a file of their own. */
static void add_part(struct manifest *manifest, int matrix, int part, int parts)
{
    uint32_t own[ROWS * EACH];
    char name[32];
    const int64_t width = (int64_t)parts * EACH;
    for (int64_t i = 0; i < ROWS * EACH; i++) {
        own[i] = value(matrix, i / EACH * width + part * EACH + i % EACH);
    }
    const uint64_t hash = hash_bytes(own, sizeof own);
    struct manifest_tensor like = {.dtype = DTYPE_F32, .ndim = 2, .shape = {ROWS, width}};
    const struct manifest_piece piece = {.file = manifest->files,
                                         .first = (int64_t)part * EACH,
                                         .count = (int64_t)ROWS * EACH,
                                         .run = EACH,
                                         .stride = width};
    snprintf(like.name, sizeof like.name, "matrix%d", matrix);
    snprintf(name, sizeof name, "part%d-%d", matrix, part);
    assert_int_equal(io_write_file(name, own, sizeof own), STATUS_OK);
    assert_int_equal(manifest_add_file(manifest, name, sizeof own, &hash), STATUS_OK);
    assert_int_equal(manifest_add_piece(manifest, &like, piece), STATUS_OK);
}

/* `matrices` of `parts` files each, in the working directory. */
static struct checkpoint_reader *make(int matrices, int parts)
{
    struct manifest manifest = {.step = 1, .ranks = (int64_t)matrices * parts};
    struct checkpoint_reader *reader = NULL;
    for (int m = 0; m < matrices; m++) {
        for (int p = 0; p < parts; p++) {
            add_part(&manifest, m, p, parts);
        }
    }
    assert_int_equal(manifest_seal(&manifest), STATUS_OK);
    char *text = manifest_print(&manifest);
    assert_non_null(text);
    put("manifest.json", text);
    free(text);
    manifest_free(&manifest);
    assert_int_equal(checkpoint_open(&reader, "."), STATUS_OK);
    return reader;
}

/* All of a matrix, some rows at a time; reads of files. */
static int64_t read_matrix(struct checkpoint_reader *reader, int matrix, int parts)
{
    static uint32_t got[STEP_ROWS * MOST_FILES * EACH];
    const int64_t some = (int64_t)STEP_ROWS * parts * EACH;
    char name[32];
    snprintf(name, sizeof name, "matrix%d", matrix);
    io_fault_arm_reads(IO_FAULT_NONE, 0, false);
    for (int64_t at = 0; at < (int64_t)ROWS * parts * EACH; at += some) {
        assert_int_equal(checkpoint_read(reader, name, at, some, got), STATUS_OK);
        for (int64_t i = 0; i < some; i++) {
            assert_int_equal(got[i], value(matrix, at + i));
        }
    }
    return io_reads();
}

static void test_each_block_once(void **state)
{
    (void)state;
    static const int counts[] = {2, 17, OPEN};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        struct checkpoint_reader *reader = make(1, counts[i]);
        assert_true(read_matrix(reader, 0, counts[i]) <= READS * counts[i]);
        checkpoint_close(reader);
    }
}

/* The first ones stay open: the others take turns. */
static void test_more_than_are_open(void **state)
{
    (void)state;
    enum { FILES = 70, TURNS = FILES - OPEN + 1 };
    struct checkpoint_reader *reader = make(1, FILES);
    assert_true(read_matrix(reader, 0, FILES) <= READS * (FILES + STEPS * TURNS));
    checkpoint_close(reader);
}

/* What the last matrix had open is given up for the next. */
static void test_next_matrix(void **state)
{
    (void)state;
    enum { FILES = 40, LATER = 2 * FILES - OPEN }; /* given up after a call */
    struct checkpoint_reader *reader = make(2, FILES);
    for (int m = 0; m < 2; m++) {
        assert_true(read_matrix(reader, m, FILES) <= READS * (FILES + LATER));
    }
    checkpoint_close(reader);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(test_each_block_once),
        SCRATCH_TEST(test_more_than_are_open),
        SCRATCH_TEST(test_next_matrix),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
