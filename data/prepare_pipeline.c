#include "data/prepare_pipeline.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_MESSAGE = 4096 + 512 };

enum slot_state { SLOT_EMPTY, SLOT_READ, SLOT_ENCODING, SLOT_DONE };

struct slot {
    enum slot_state state;
    struct document_batch batch;
    struct prepare_block block;
    bool last; /* there is no batch in it, nor in those behind */
    enum status status;
    char message[MAX_MESSAGE];
};

struct prepare_pipeline {
    const struct prepare_rules *rules; /* borrowed */
    struct documents documents;        /* the reader's */
    struct prepare_worker *worker;     /* [workers] owned */
    pthread_t *thread;                 /* [workers + 1] owned; the reader's is the last */
    int workers, running;
    struct slot *slot; /* [slots] owned */
    int slots;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* under the lock */
    int64_t read, begun,
        taken;        /* batches read, begun to be encoded, given back; slot = n % slots */
    int64_t bytes;    /* of text in the slots */
    bool ended, stop; /* nothing more is read; threads are to end */
};

/* Keeps what failed in this thread for the one that takes it. */
static void keep_status(struct slot *slot, enum status status)
{
    slot->status = status;
    if (status != STATUS_OK) {
        strncpy(slot->message, status_message(), MAX_MESSAGE - 1);
        slot->message[MAX_MESSAGE - 1] = '\0';
    }
}

/* Reads the next batch into its slot; false when nothing follows. The lock is held, and let go
 * while it reads. */
static bool read_one(struct prepare_pipeline *pipeline)
{
    struct slot *slot = &pipeline->slot[pipeline->read % pipeline->slots];
    while (!pipeline->stop && (slot->state != SLOT_EMPTY || pipeline->bytes > PIPELINE_BYTES)) {
        pthread_cond_wait(&pipeline->changed, &pipeline->lock);
    }
    if (pipeline->stop) {
        return false;
    }
    pthread_mutex_unlock(&pipeline->lock);
    bool more = false;
    const enum status status = documents_next(&pipeline->documents, &slot->batch, &more);
    keep_status(slot, status);
    pthread_mutex_lock(&pipeline->lock);
    slot->last = status == STATUS_OK && !more;
    const bool whole = status == STATUS_OK && more;
    slot->state = whole ? SLOT_READ : SLOT_DONE;
    pipeline->bytes += whole ? (int64_t)slot->batch.text.count : 0;
    pipeline->read++;
    pipeline->ended = !whole;
    pthread_cond_broadcast(&pipeline->changed);
    return whole;
}

static void *run_reader(void *context)
{
    struct prepare_pipeline *pipeline = context;
    pthread_mutex_lock(&pipeline->lock);
    while (read_one(pipeline)) {
    }
    pthread_mutex_unlock(&pipeline->lock);
    return NULL;
}

/* The next batch that was read and that nobody has begun; NULL: there will be none. */
static struct slot *begin_one(struct prepare_pipeline *pipeline)
{
    for (;;) {
        struct slot *slot = &pipeline->slot[pipeline->begun % pipeline->slots];
        if (pipeline->stop) {
            return NULL;
        }
        if (pipeline->begun < pipeline->read) {
            if (slot->state != SLOT_READ) {
                return NULL; /* the end, or what could not be read */
            }
            pipeline->begun++;
            slot->state = SLOT_ENCODING;
            return slot;
        }
        pthread_cond_wait(&pipeline->changed, &pipeline->lock);
    }
}

static void *run_worker(void *context)
{
    struct prepare_worker *worker = context;
    struct prepare_pipeline *pipeline = worker->pipeline;
    pthread_mutex_lock(&pipeline->lock);
    for (struct slot *slot = begin_one(pipeline); slot != NULL; slot = begin_one(pipeline)) {
        pthread_mutex_unlock(&pipeline->lock);
        keep_status(slot, prepare_encode(worker, &slot->batch, &slot->block));
        pthread_mutex_lock(&pipeline->lock);
        slot->state = SLOT_DONE;
        pthread_cond_broadcast(&pipeline->changed);
    }
    pthread_mutex_unlock(&pipeline->lock);
    return NULL;
}

/* Threads leave signals to the one that waits for them. */
static enum status start(struct prepare_pipeline *pipeline, void *(*run)(void *), void *context)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failed = pthread_create(&pipeline->thread[pipeline->running], NULL, run, context);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pipeline->running += failed == 0;
    return failed == 0 ? STATUS_OK
                       : status_fail(STATUS_RESOURCE, "prepare: cannot start thread %d: %s",
                                     pipeline->running, strerror(failed));
}

enum status prepare_pipeline_open(struct prepare_pipeline **out, const struct prepare_rules *rules,
                                  int workers, int64_t first, int64_t stride)
{
    struct prepare_pipeline *pipeline = calloc(1, sizeof *pipeline);
    *out = pipeline;
    if (pipeline == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for %d workers", workers);
    }
    pthread_mutex_init(&pipeline->lock, NULL);
    pthread_cond_init(&pipeline->changed, NULL);
    pipeline->rules = rules;
    pipeline->workers = workers;
    pipeline->slots = 2 * workers + 2;
    pipeline->documents.open_file = -1;
    pipeline->worker = calloc((size_t)workers, sizeof *pipeline->worker);
    pipeline->thread = calloc((size_t)workers + 1, sizeof *pipeline->thread);
    pipeline->slot = calloc((size_t)pipeline->slots, sizeof *pipeline->slot);
    if (pipeline->worker == NULL || pipeline->thread == NULL || pipeline->slot == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for %d workers", workers);
    }
    const int64_t limit = rules->options->most_document_bytes;
    TRY(documents_open(&pipeline->documents, rules->files,
                       limit > 0 ? limit : PREPARE_MOST_DOCUMENT, first, stride));
    pipeline->documents.pieces = prepare_rules_pieces(rules);
    pipeline->documents.find_binary = !rules->options->keep_binary;
    for (int i = 0; i < workers; i++) {
        TRY(prepare_worker_open(&pipeline->worker[i], rules));
        pipeline->worker[i].pipeline = pipeline;
        TRY(start(pipeline, run_worker, &pipeline->worker[i]));
    }
    return start(pipeline, run_reader, pipeline);
}

enum status prepare_pipeline_take(struct prepare_pipeline *pipeline, struct prepare_block **block)
{
    struct slot *slot = &pipeline->slot[pipeline->taken % pipeline->slots];
    pthread_mutex_lock(&pipeline->lock);
    while (slot->state != SLOT_DONE) {
        pthread_cond_wait(&pipeline->changed, &pipeline->lock);
    }
    pthread_mutex_unlock(&pipeline->lock);
    *block = slot->status == STATUS_OK && !slot->last ? &slot->block : NULL;
    return slot->status == STATUS_OK ? STATUS_OK : status_lines(slot->status, slot->message);
}

/* What one huge document needed is given back. */
static void trim(struct slot *slot)
{
    static const size_t most = 16 * (size_t)DOCUMENTS_BATCH;
    if (slot->batch.text.room > most) {
        byte_list_free(&slot->batch.text);
    }
    if (slot->block.tokens.room > most) {
        byte_list_free(&slot->block.tokens);
        byte_list_free(&slot->block.mask);
    }
}

void prepare_pipeline_give(struct prepare_pipeline *pipeline)
{
    struct slot *slot = &pipeline->slot[pipeline->taken % pipeline->slots];
    pthread_mutex_lock(&pipeline->lock);
    pipeline->bytes -= (int64_t)slot->batch.text.count;
    pipeline->taken++;
    trim(slot);
    slot->state = SLOT_EMPTY;
    pthread_cond_broadcast(&pipeline->changed);
    pthread_mutex_unlock(&pipeline->lock);
}

void prepare_pipeline_close(struct prepare_pipeline *pipeline)
{
    if (pipeline == NULL) {
        return;
    }
    pthread_mutex_lock(&pipeline->lock);
    pipeline->stop = true;
    pthread_cond_broadcast(&pipeline->changed);
    pthread_mutex_unlock(&pipeline->lock);
    for (int i = 0; i < pipeline->running; i++) {
        pthread_join(pipeline->thread[i], NULL);
    }
    for (int i = 0; pipeline->worker != NULL && i < pipeline->workers; i++) {
        prepare_worker_close(&pipeline->worker[i]);
    }
    for (int i = 0; pipeline->slot != NULL && i < pipeline->slots; i++) {
        document_batch_free(&pipeline->slot[i].batch);
        prepare_block_free(&pipeline->slot[i].block);
    }
    documents_close(&pipeline->documents);
    pthread_cond_destroy(&pipeline->changed);
    pthread_mutex_destroy(&pipeline->lock);
    free(pipeline->worker);
    free(pipeline->thread);
    free(pipeline->slot);
    free(pipeline);
}
