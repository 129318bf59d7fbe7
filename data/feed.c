#define _GNU_SOURCE /* pthread_sigmask */
#include "data/feed.h"

#include <signal.h>
#include <stdlib.h>

static void fill(const struct feed *feed, struct feed_set *set)
{
    set->labels = 0;
    for (int64_t i = 0; i < set->own; i++) {
        const int64_t unit = i * feed->ranks + feed->rank;
        set->labels += mixture_batch(feed->mixture, &set->batches[i],
                                     set->position + unit * feed->micro, feed->micro);
    }
}

static void *work(void *context)
{
    struct feed *feed = context;
    pthread_mutex_lock(&feed->lock);
    while (!feed->stop) {
        if (!feed->filling) {
            pthread_cond_wait(&feed->changed, &feed->lock);
            continue;
        }
        struct feed_set *set = &feed->set[1 - feed->current];
        pthread_mutex_unlock(&feed->lock);
        fill(feed, set);
        pthread_mutex_lock(&feed->lock);
        feed->filling = false;
        pthread_cond_broadcast(&feed->changed);
    }
    pthread_mutex_unlock(&feed->lock);
    return NULL;
}

/* Signals are the main thread's. */
static void start_thread(struct feed *feed)
{
    sigset_t all, before;
    pthread_mutex_init(&feed->lock, NULL);
    pthread_cond_init(&feed->changed, NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    feed->threaded = pthread_create(&feed->thread, NULL, work, feed) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

enum status feed_open(struct feed *feed, const struct mixture *mixture, int64_t micro,
                      int64_t length, int64_t rank, int64_t ranks, int64_t most)
{
    const int64_t tokens = micro * length;
    *feed = (struct feed){
        .mixture = mixture, .micro = micro, .length = length, .rank = rank, .ranks = ranks};
    for (int i = 0; i < 2; i++) {
        struct feed_set *set = &feed->set[i];
        set->storage = calloc((size_t)(most * 4 * tokens), sizeof *set->storage);
        set->batches = calloc((size_t)most, sizeof *set->batches);
        for (int64_t b = 0; b < most && set->storage != NULL && set->batches != NULL; b++) {
            set->batches[b] = batch_view(set->storage + b * 4 * tokens, tokens);
        }
    }
    start_thread(feed);
    return feed->set[0].storage != NULL && feed->set[0].batches != NULL &&
                   feed->set[1].storage != NULL && feed->set[1].batches != NULL
               ? STATUS_OK
               : status_fail(STATUS_RESOURCE, "out of memory for batches of %lld sequences",
                             (long long)(most * micro));
}

void feed_close(struct feed *feed)
{
    if (feed->mixture == NULL) {
        return;
    }
    if (feed->threaded) {
        pthread_mutex_lock(&feed->lock);
        feed->stop = true;
        pthread_cond_broadcast(&feed->changed);
        pthread_mutex_unlock(&feed->lock);
        pthread_join(feed->thread, NULL);
    }
    pthread_cond_destroy(&feed->changed);
    pthread_mutex_destroy(&feed->lock);
    for (int i = 0; i < 2; i++) {
        free(feed->set[i].storage);
        free(feed->set[i].batches);
    }
    *feed = (struct feed){0};
}

static void await(struct feed *feed)
{
    if (feed->threaded) {
        pthread_mutex_lock(&feed->lock);
        while (feed->filling) {
            pthread_cond_wait(&feed->changed, &feed->lock);
        }
        pthread_mutex_unlock(&feed->lock);
    }
}

enum status feed_take(struct feed *feed, int64_t position, int64_t own,
                      const struct batch **batches, int64_t *labels)
{
    await(feed);
    feed->current = 1 - feed->current;
    struct feed_set *set = &feed->set[feed->current];
    if (set->position != position || set->own != own) {
        set->position = position;
        set->own = own;
        fill(feed, set);
    }
    *labels = set->labels;
    *batches = set->batches;
    return mixture_status(feed->mixture);
}

void feed_prepare(struct feed *feed, int64_t position, int64_t own)
{
    if (!feed->threaded) {
        return;
    }
    await(feed);
    pthread_mutex_lock(&feed->lock);
    struct feed_set *set = &feed->set[1 - feed->current];
    set->position = position;
    set->own = own;
    feed->filling = true;
    pthread_cond_broadcast(&feed->changed);
    pthread_mutex_unlock(&feed->lock);
}
