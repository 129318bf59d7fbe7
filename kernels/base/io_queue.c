#include "kernels/base/io_queue.h"

#include <assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

static struct io_job *job_of(struct io_queue *queue, int64_t index)
{
    return &queue->job[index % queue->depth];
}

static void run_job(struct io_job *job)
{
    job->status = job->write ? io_pwrite(job->file, job->buffer, job->bytes, job->offset)
                             : io_pread(job->file, job->buffer, job->bytes, job->offset);
    if (job->status != STATUS_OK) {
        snprintf(job->message, sizeof job->message, "%s", status_message());
    }
}

/* The oldest job that is not done; called with the mutex held. */
static void run_next(struct io_queue *queue)
{
    struct io_job *job = job_of(queue, queue->done);
    const bool skipped = job->write && queue->failed;
    pthread_mutex_unlock(&queue->mutex);
    if (skipped) {
        job->status = STATUS_IO;
        snprintf(job->message, sizeof job->message, "%s: a write before failed", job->file->path);
    } else {
        run_job(job);
    }
    pthread_mutex_lock(&queue->mutex);
    queue->failed = queue->failed || (job->write && job->status != STATUS_OK);
    queue->done++;
    pthread_cond_broadcast(&queue->changed);
}

static void *move_blocks(void *context)
{
    struct io_queue *queue = context;
    pthread_mutex_lock(&queue->mutex);
    while (!queue->ends || queue->done < queue->submitted) {
        if (queue->done < queue->submitted) {
            run_next(queue);
        } else {
            pthread_cond_wait(&queue->changed, &queue->mutex);
        }
    }
    pthread_mutex_unlock(&queue->mutex);
    return NULL;
}

/* Signals are for the main thread. Without a thread jobs run in the caller. */
static void start_thread(struct io_queue *queue)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    queue->threaded = pthread_create(&queue->thread, NULL, move_blocks, queue) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

enum status io_queue_open(struct io_queue *queue, size_t block_bytes, int depth)
{
    assert(depth > 0 && depth <= IO_QUEUE_DEPTH);
    *queue = (struct io_queue){.block_bytes = block_bytes, .depth = depth};
    pthread_mutex_init(&queue->mutex, NULL);
    pthread_cond_init(&queue->changed, NULL);
    queue->job[0].buffer = io_buffer(queue->block_bytes); /* the others when they are used */
    if (queue->job[0].buffer == NULL) {
        io_queue_close(queue);
        return status_fail(STATUS_RESOURCE, "out of memory for a block of %zu bytes", block_bytes);
    }
    return STATUS_OK;
}

void io_queue_close(struct io_queue *queue)
{
    if (queue->threaded) {
        pthread_mutex_lock(&queue->mutex);
        queue->ends = true;
        pthread_cond_broadcast(&queue->changed);
        pthread_mutex_unlock(&queue->mutex);
        pthread_join(queue->thread, NULL);
    }
    for (int i = 0; i < IO_QUEUE_DEPTH; i++) {
        free(queue->job[i].buffer);
    }
    *queue = (struct io_queue){0};
}

/* Memory for a job: new, or that of one that is free; NULL: those under way have it all. */
static char *find_buffer(struct io_queue *queue)
{
    char *buffer = io_buffer(queue->block_bytes);
    for (int64_t i = queue->submitted + 1; i < queue->released + queue->depth && buffer == NULL;
         i++) {
        buffer = job_of(queue, i)->buffer;
        job_of(queue, i)->buffer = NULL;
    }
    return buffer;
}

struct io_job *io_queue_free(struct io_queue *queue)
{
    struct io_job *job = job_of(queue, queue->submitted);
    if (queue->submitted - queue->released >= queue->depth) {
        return NULL;
    }
    if (job->buffer == NULL) {
        job->buffer = find_buffer(queue);
    }
    return job->buffer != NULL ? job : NULL;
}

void io_queue_submit(struct io_queue *queue)
{
    if (!queue->threaded && queue->submitted >= 2) {
        start_thread(queue);
    }
    pthread_mutex_lock(&queue->mutex);
    queue->submitted++;
    if (queue->threaded) {
        pthread_cond_broadcast(&queue->changed);
    } else {
        run_next(queue);
    }
    pthread_mutex_unlock(&queue->mutex);
}

const struct io_job *io_queue_oldest(const struct io_queue *queue)
{
    return queue->released < queue->submitted ? &queue->job[queue->released % queue->depth] : NULL;
}

struct io_job *io_queue_wait(struct io_queue *queue)
{
    if (queue->released == queue->submitted) {
        return NULL;
    }
    pthread_mutex_lock(&queue->mutex);
    while (queue->done <= queue->released) {
        pthread_cond_wait(&queue->changed, &queue->mutex);
    }
    pthread_mutex_unlock(&queue->mutex);
    return job_of(queue, queue->released);
}

void io_queue_release(struct io_queue *queue)
{
    assert(queue->released < queue->submitted);
    queue->released++; /* the caller's own: the thread does not look at it */
}

static enum status finish_oldest(struct io_queue *queue)
{
    const struct io_job *job = io_queue_wait(queue);
    const enum status status =
        job->status == STATUS_OK ? STATUS_OK : status_lines(job->status, job->message);
    io_queue_release(queue);
    return status;
}

enum status io_queue_next(struct io_queue *queue, struct io_job **job)
{
    for (*job = io_queue_free(queue); *job == NULL; *job = io_queue_free(queue)) {
        TRY(finish_oldest(queue));
    }
    return STATUS_OK;
}

enum status io_queue_finish(struct io_queue *queue)
{
    while (io_queue_oldest(queue) != NULL) {
        TRY(finish_oldest(queue));
    }
    return !queue->failed ? STATUS_OK : status_fail(STATUS_IO, "a write before failed");
}
