/* io_queue: blocks of a file on their way to or from the disk while others are filled, hashed or
 * copied. One thread of its own moves them one by one in the order they came, so that operations of
 * io have the same numbers in every run.
 *
 * The first two jobs run in the caller: small files need no thread. At most `depth` blocks are
 * held; none of it is MPI's or HDF5's business.
 */
#ifndef KERNELS_BASE_IO_QUEUE_H
#define KERNELS_BASE_IO_QUEUE_H

#include <pthread.h>

#include "kernels/base/io.h"

enum { IO_QUEUE_DEPTH = 8 };

struct io_job {
    struct io_file *file; /* borrowed; nobody else's until the job is done */
    bool write;
    int64_t offset;
    size_t bytes;
    char *buffer;       /* the queue's: of the size of io_queue_open, of io_buffer */
    enum status status; /* of the transfer, when done */
    char message[2048]; /* of a failure */
};

struct io_queue {
    struct io_job job[IO_QUEUE_DEPTH];
    size_t block_bytes; /* of each buffer */
    int depth;
    int64_t submitted, done, released; /* jobs, from the beginning; released <= done <= submitted */
    bool threaded, failed, ends;       /* failed: a write did, later ones are not tried */
    pthread_t thread;
    pthread_mutex_t mutex; /* of all but what the owner of a job has */
    pthread_cond_t changed;
};

/* At most `depth` (to IO_QUEUE_DEPTH) jobs of at most block_bytes. Errors: STATUS_RESOURCE. */
enum status io_queue_open(struct io_queue *queue, size_t block_bytes, int depth) IO_CHECKED;
/* Waits for what is under way. Accepts a zeroed or closed one. */
void io_queue_close(struct io_queue *queue);

/* The next job, for the caller to fill in and submit; NULL: what there is is held, release one. */
struct io_job *io_queue_free(struct io_queue *queue);
void io_queue_submit(struct io_queue *queue);
/* The oldest job that is not released, when it is done; NULL: none. */
struct io_job *io_queue_wait(struct io_queue *queue);
/* The oldest, done or not, to look at; NULL: none. */
const struct io_job *io_queue_oldest(const struct io_queue *queue);
void io_queue_release(struct io_queue *queue);

/* For who only writes: the next job, for which older ones are waited for and released. Errors: of
 * these. */
enum status io_queue_next(struct io_queue *queue, struct io_job **job) IO_CHECKED;
/* Waits for all jobs and releases them. Errors: of these, the first of them; and again of a write
 * that failed at any time before. */
enum status io_queue_finish(struct io_queue *queue) IO_CHECKED;

#endif
