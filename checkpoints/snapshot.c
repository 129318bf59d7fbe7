#include "checkpoints/snapshot.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/io.h"

/* Bytes of a piece: small beside a step, large beside a lock. */
enum { PIECE_BYTES = 4 << 20, PAGE_BYTES = 2 << 20, ALIGNMENT = 64 };

struct snapshot_piece {
    const struct checkpoint_slice *from; /* borrowed */
    int64_t offset;
    char *to;
    size_t bytes;
};

static size_t slice_bytes(const struct checkpoint_slice *slice)
{
    return (size_t)slice->count * dtype_bytes(slice->dtype);
}

static size_t padded(size_t bytes, size_t to)
{
    return (bytes + to - 1) / to * to;
}

size_t snapshot_bytes(const struct checkpoint_slice *slices, int64_t count)
{
    size_t bytes = 0;
    for (int64_t i = 0; i < count; i++) {
        bytes += padded(slice_bytes(&slices[i]), ALIGNMENT);
    }
    return padded(bytes + 1, bytes > PAGE_BYTES ? PAGE_BYTES : ALIGNMENT);
}

static enum status reserve(struct snapshot *snapshot, const struct checkpoint_slice *slices)
{
    int64_t pieces = 0;
    for (int64_t i = 0; i < snapshot->slices; i++) {
        pieces += (int64_t)(slice_bytes(&slices[i]) / PIECE_BYTES) + 1;
    }
    snapshot->bytes = snapshot_bytes(slices, snapshot->slices);
    const bool large = snapshot->bytes > PAGE_BYTES;
    snapshot->slice = calloc((size_t)snapshot->slices + 1, sizeof *snapshot->slice);
    snapshot->piece = calloc((size_t)pieces + 1, sizeof *snapshot->piece);
    snapshot->memory =
        snapshot->device != NULL
            ? device_ops(snapshot->device)->host_alloc(snapshot->device, snapshot->bytes)
        : large ? io_buffer(snapshot->bytes)
                : aligned_alloc(ALIGNMENT, snapshot->bytes);
    if (snapshot->slice == NULL || snapshot->piece == NULL || snapshot->memory == NULL) {
        return status_fail(STATUS_RESOURCE,
                           "out of memory for the copy of the state to save (%zu "
                           "MiB)",
                           snapshot->bytes >> 20);
    }
    return STATUS_OK;
}

/* Of the slices that the device copies, or of the others. */
static void add_pieces(struct snapshot *snapshot, const struct checkpoint_slice *slices,
                       bool by_device)
{
    for (int64_t i = 0; i < snapshot->slices; i++) {
        const size_t bytes = slice_bytes(&slices[i]);
        const bool device = snapshot->device != NULL && slices[i].read != NULL;
        for (size_t done = 0; done < bytes && device == by_device; done += PIECE_BYTES) {
            snapshot->piece[snapshot->pieces++] = (struct snapshot_piece){
                .from = &slices[i],
                .offset = (int64_t)done,
                .to = (char *)snapshot->slice[i].data + done,
                .bytes = bytes - done < PIECE_BYTES ? bytes - done : PIECE_BYTES};
        }
    }
}

enum status snapshot_init(struct snapshot *snapshot, const struct checkpoint_slice *slices,
                          int64_t count, struct device *device)
{
    size_t at = 0;
    *snapshot = (struct snapshot){.slices = count, .device = device};
    TRY(reserve(snapshot, slices));
    for (int64_t i = 0; i < count; i++) {
        snapshot->slice[i] = slices[i];
        snapshot->slice[i].data = snapshot->memory + at;
        snapshot->slice[i].read = NULL;
        at += padded(slice_bytes(&slices[i]), ALIGNMENT);
    }
    add_pieces(snapshot, slices, false);
    snapshot->own = snapshot->pieces;
    add_pieces(snapshot, slices, true);
    snapshot->taken = snapshot->own;
    snapshot->copied = snapshot->pieces;
    snapshot->landed = true;
    pthread_mutex_init(&snapshot->lock, NULL);
    pthread_cond_init(&snapshot->whole, NULL);
    snapshot->made = true;
    return STATUS_OK;
}

void snapshot_free(struct snapshot *snapshot)
{
    if (snapshot->made) {
        pthread_mutex_destroy(&snapshot->lock);
        pthread_cond_destroy(&snapshot->whole);
    }
    free(snapshot->slice);
    free(snapshot->piece);
    if (snapshot->device != NULL) {
        device_ops(snapshot->device)
            ->host_free(snapshot->device, snapshot->memory, snapshot->bytes);
    } else {
        free(snapshot->memory);
    }
    *snapshot = (struct snapshot){0};
}

void snapshot_touch(struct snapshot *snapshot)
{
    const size_t page = 4096;
    for (size_t at = 0; at < snapshot->bytes && snapshot->device == NULL; at += page) {
        *(volatile char *)(snapshot->memory + at) = 0;
    }
}

void snapshot_start(struct snapshot *snapshot)
{
    pthread_mutex_lock(&snapshot->lock);
    snapshot->taken = snapshot->copied = 0;
    snapshot->landed = snapshot->device == NULL;
    pthread_mutex_unlock(&snapshot->lock);
    for (int64_t i = snapshot->own; i < snapshot->pieces; i++) {
        const struct snapshot_piece *piece = &snapshot->piece[i];
        device_ops(snapshot->device)
            ->download_begin(snapshot->device, piece->to,
                             (const char *)piece->from->data + piece->offset, piece->bytes);
    }
}

/* What the device copies. */
static void wait_for_device(struct snapshot *snapshot)
{
    device_ops(snapshot->device)->download_wait(snapshot->device);
    pthread_mutex_lock(&snapshot->lock);
    snapshot->copied += snapshot->landed ? 0 : snapshot->pieces - snapshot->own;
    snapshot->landed = true;
    if (snapshot->copied == snapshot->pieces) {
        pthread_cond_broadcast(&snapshot->whole);
    }
    pthread_mutex_unlock(&snapshot->lock);
}

/* NULL: all are taken. `done`: the caller has copied one since. */
static const struct snapshot_piece *take(struct snapshot *snapshot, bool done)
{
    const struct snapshot_piece *piece = NULL;
    pthread_mutex_lock(&snapshot->lock);
    snapshot->copied += done;
    if (done && snapshot->copied == snapshot->pieces) {
        pthread_cond_broadcast(&snapshot->whole);
    }
    if (snapshot->taken < snapshot->own) {
        piece = &snapshot->piece[snapshot->taken++];
    }
    pthread_mutex_unlock(&snapshot->lock);
    return piece;
}

void snapshot_copy(struct snapshot *snapshot)
{
    for (const struct snapshot_piece *piece = take(snapshot, false); piece != NULL;
         piece = take(snapshot, true)) {
        const struct checkpoint_slice *from = piece->from;
        if (from->read == NULL) {
            memcpy(piece->to, (const char *)from->data + piece->offset, piece->bytes);
        } else {
            const enum status status = from->read(from, piece->offset, piece->to, piece->bytes);
            assert(status == STATUS_OK);
        }
    }
}

void snapshot_wait(struct snapshot *snapshot)
{
    pthread_mutex_lock(&snapshot->lock);
    while (snapshot->copied < snapshot->pieces) {
        pthread_cond_wait(&snapshot->whole, &snapshot->lock);
    }
    pthread_mutex_unlock(&snapshot->lock);
}

void snapshot_finish(struct snapshot *snapshot)
{
    if (snapshot->device != NULL) {
        wait_for_device(snapshot);
    }
    snapshot_copy(snapshot);
    snapshot_wait(snapshot);
}
