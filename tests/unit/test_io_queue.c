/* io_queue: blocks come and go in their order beside the caller, a failed write stops those
 * behind it, a failed read those alone that it is of. */
#include "unit/scratch.h"

#include "checkpoints/manifest.h"
#include "kernels/base/io_queue.h"

enum { BLOCKS = 11, SIZE = 8192 };

static struct {
    int64_t offset[BLOCKS];
    int count;
} seen;

static void see(void *context, const struct io_event *event)
{
    (void)context;
    if (event->kind == IO_WRITE) {
        assert_true(seen.count < BLOCKS);
        seen.offset[seen.count++] = event->offset;
    }
}

static void fill_in(struct io_job *job, struct io_file *file, bool write, int64_t block)
{
    job->file = file;
    job->write = write;
    job->offset = block * SIZE;
    job->bytes = SIZE;
}

/* Blocks full of their number, as many under way as may be; the first one's status that is not
 * good. */
static enum status write_blocks(struct io_queue *queue, struct io_file *file)
{
    enum status first = STATUS_OK;
    for (int64_t b = 0, done = 0; done < BLOCKS;) {
        struct io_job *job = b < BLOCKS ? io_queue_free(queue) : NULL;
        if (job != NULL) {
            fill_in(job, file, true, b);
            memset(job->buffer, (int)b++, SIZE);
            io_queue_submit(queue);
            continue;
        }
        assert_true(b == BLOCKS || b - done == IO_QUEUE_DEPTH);
        job = io_queue_wait(queue);
        assert_non_null(job);
        assert_int_equal(job->offset, done++ * SIZE);
        first = first == STATUS_OK && job->status != STATUS_OK
                    ? status_lines(job->status, job->message)
                    : first;
        io_queue_release(queue);
    }
    assert_null(io_queue_wait(queue));
    assert_null(io_queue_oldest(queue));
    return first;
}

static void test_in_order(void **state)
{
    (void)state;
    struct io_queue queue;
    struct io_file file;
    seen.count = 0;
    io_observe(see, NULL);
    assert_int_equal(io_create_direct(&file, "blocks"), STATUS_OK);
    assert_int_equal(io_queue_open(&queue, SIZE, IO_QUEUE_DEPTH), STATUS_OK);
    assert_int_equal(write_blocks(&queue, &file), STATUS_OK);
    assert_true(queue.threaded);
    io_queue_close(&queue);
    assert_int_equal(io_close(&file), STATUS_OK);
    io_observe(NULL, NULL);
    assert_int_equal(seen.count, BLOCKS);
    for (int b = 0; b < BLOCKS; b++) {
        assert_int_equal(seen.offset[b], b * SIZE);
    }
    assert_int_equal(io_open_read_direct(&file, "blocks"), STATUS_OK);
    assert_int_equal(io_queue_open(&queue, SIZE, IO_QUEUE_DEPTH), STATUS_OK);
    for (int64_t b = 0; b <= BLOCKS; b++) { /* the last one lies behind the end */
        struct io_job *job = io_queue_free(&queue);
        fill_in(job, &file, false, b);
        io_queue_submit(&queue);
        job = io_queue_wait(&queue);
        assert_int_equal(job->status, b < BLOCKS ? STATUS_OK : STATUS_DATA);
        assert_true(b == BLOCKS || (job->buffer[0] == (char)b && job->buffer[SIZE - 1] == (char)b));
        io_queue_release(&queue);
    }
    io_queue_close(&queue);
    io_queue_close(&queue);
    assert_int_equal(io_close(&file), STATUS_OK);
}

/* Any write, in the caller or in the thread: what is behind it is not tried. */
static void test_failed_writes(void **state)
{
    (void)state;
    for (int64_t k = 1; k <= BLOCKS; k++) {
        struct io_queue queue;
        struct io_file file;
        assert_int_equal(io_create(&file, "blocks"), STATUS_OK);
        assert_int_equal(io_queue_open(&queue, SIZE, IO_QUEUE_DEPTH), STATUS_OK);
        io_fault_arm(IO_FAULT_ENOSPC, k, false);
        assert_int_equal(write_blocks(&queue, &file), STATUS_IO);
        expect_message("No space left on device");
        assert_int_equal(io_operations(), k);
        io_fault_arm(IO_FAULT_NONE, 0, false);
        io_queue_close(&queue);
        assert_int_equal(io_close(&file), STATUS_OK);
    }
}

/* For who only writes: what could not be written is told, and told again. */
static void test_next_and_finish(void **state)
{
    (void)state;
    struct io_queue queue;
    struct io_file file;
    struct io_job *job = NULL;
    int64_t bytes = 0;
    assert_int_equal(io_create(&file, "blocks"), STATUS_OK);
    assert_int_equal(io_queue_open(&queue, SIZE, 2), STATUS_OK);
    for (int64_t b = 0; b < 2 * BLOCKS; b++) {
        io_fault_arm(b == BLOCKS ? IO_FAULT_ENOSPC : IO_FAULT_NONE, 1, false);
        assert_int_equal(io_queue_next(&queue, &job), STATUS_OK);
        fill_in(job, &file, true, b);
        memset(job->buffer, (int)b, SIZE);
        io_queue_submit(&queue);
        if (b == BLOCKS) {
            break;
        }
        assert_int_equal(io_queue_finish(&queue), STATUS_OK);
        assert_int_equal(io_size(&file, &bytes), STATUS_OK);
        assert_int_equal(bytes, (b + 1) * SIZE);
    }
    assert_int_equal(io_queue_finish(&queue), STATUS_IO);
    expect_message("No space left on device");
    io_fault_arm(IO_FAULT_NONE, 0, false);
    assert_int_equal(io_queue_finish(&queue), STATUS_IO);
    assert_int_equal(io_queue_next(&queue, &job), STATUS_OK);
    fill_in(job, &file, true, BLOCKS);
    io_queue_submit(&queue);
    assert_int_equal(io_queue_finish(&queue), STATUS_IO);
    expect_message("a write before failed");
    io_queue_close(&queue);
    assert_int_equal(io_close(&file), STATUS_OK);
}

/* Closed with blocks on their way: they are finished first. */
static void test_closed_early(void **state)
{
    (void)state;
    struct io_queue queue;
    struct io_file file;
    int64_t bytes = 0;
    assert_int_equal(io_create(&file, "blocks"), STATUS_OK);
    assert_int_equal(io_queue_open(&queue, SIZE, IO_QUEUE_DEPTH), STATUS_OK);
    for (int64_t b = 0; b < IO_QUEUE_DEPTH; b++) {
        struct io_job *job = io_queue_free(&queue);
        fill_in(job, &file, true, b);
        memset(job->buffer, 1, SIZE);
        io_queue_submit(&queue);
    }
    assert_null(io_queue_free(&queue));
    io_queue_close(&queue);
    assert_int_equal(io_size(&file, &bytes), STATUS_OK);
    assert_int_equal(bytes, IO_QUEUE_DEPTH * SIZE);
    assert_int_equal(io_close(&file), STATUS_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(test_in_order),
        SCRATCH_TEST(test_failed_writes),
        SCRATCH_TEST(test_next_and_finish),
        SCRATCH_TEST(test_closed_early),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
