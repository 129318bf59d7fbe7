/* block_queue: blocks of a file on their way to or from the disk while others are filled, hashed or
 * copied. One thread of its own moves them one by one in the order they came, so that operations of
 * io have the same numbers in every run.
 *
 * The first two jobs run in the caller: small files need no thread. At most BLOCK_QUEUE_DEPTH
 * blocks are held; none of it is MPI's or HDF5's business. Private to checkpoints/.
 */
#ifndef CHECKPOINTS_BLOCK_QUEUE_H
#define CHECKPOINTS_BLOCK_QUEUE_H

#include <pthread.h>

#include "kernels/base/io.h"

enum { BLOCK_QUEUE_DEPTH = 8 };

struct block_job {
    struct io_file *file; /* borrowed; nobody else's until the job is done */
    bool write;
    int64_t offset;
    size_t bytes;
    char *buffer;       /* the queue's: [MANIFEST_BLOCK_BYTES], aligned for direct I/O */
    enum status status; /* of the transfer, when done */
    char message[2048]; /* of a failure */
};

struct block_queue {
    struct block_job job[BLOCK_QUEUE_DEPTH];
    int64_t submitted, done, released; /* jobs, from the beginning; released <= done <= submitted */
    bool threaded, failed, ends;       /* failed: a write did, later ones are not tried */
    pthread_t thread;
    pthread_mutex_t mutex; /* of all but what the owner of a job has */
    pthread_cond_t changed;
};

/* Errors: STATUS_RESOURCE. */
enum status block_queue_open(struct block_queue *queue) __attribute__((warn_unused_result));
/* Waits for what is under way. Accepts a zeroed or closed one. */
void block_queue_close(struct block_queue *queue);

/* The next job, for the caller to fill in and submit; NULL: what there is is held, release one. */
struct block_job *block_queue_free(struct block_queue *queue);
void block_queue_submit(struct block_queue *queue);
/* The oldest job that is not released, when it is done; NULL: none. */
struct block_job *block_queue_wait(struct block_queue *queue);
/* The oldest, done or not, to look at; NULL: none. */
const struct block_job *block_queue_oldest(const struct block_queue *queue);
void block_queue_release(struct block_queue *queue);

#endif
