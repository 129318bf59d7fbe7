#include "data/packing.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/base/rng.h"

enum { WORD = 64 };

/* Lengths of the window's documents, into raw. `counted`: over-long and empty ones are counted. */
static void collect(struct row_packing *packing, int64_t window, bool counted)
{
    const struct token_store *store = packing->store;
    const int64_t first = window * PACKING_WINDOW, left = store->documents - first,
                  count = left < PACKING_WINDOW ? left : PACKING_WINDOW;
    packing->entries = 0;
    for (int64_t i = first; i < first + count; i++) {
        const int64_t document = packing->shuffle ? (int64_t)rng_permute(packing->key, (uint64_t)i,
                                                                         (uint64_t)store->documents)
                                                  : i;
        const int64_t tokens =
            store->document_offsets[document + 1] - store->document_offsets[document];
        const int64_t places = tokens - 1 < packing->length ? tokens - 1 : packing->length;
        if (counted) {
            packing->cut += tokens - 1 > places && places > 0 ? 1 : 0;
            packing->cut_tokens += places > 0 ? tokens - 1 - places : 0;
            packing->empty += places <= 0 ? 1 : 0;
            packing->used += places > 0 ? places : 0;
        }
        if (places > 0) {
            packing->raw[packing->entries++] =
                (struct packing_entry){.document = document, .length = places};
        }
    }
}

/* sorted <- raw by `keys` of 0 .. most, stable. */
static void sort(struct row_packing *packing, int64_t most,
                 int64_t (*key)(const struct row_packing *, const struct packing_entry *))
{
    int64_t *count = packing->count;
    memset(count, 0, (size_t)(most + 2) * sizeof *count);
    for (int64_t i = 0; i < packing->entries; i++) {
        count[key(packing, &packing->raw[i]) + 1]++;
    }
    for (int64_t i = 0; i <= most; i++) {
        count[i + 1] += count[i];
    }
    for (int64_t i = 0; i < packing->entries; i++) {
        packing->sorted[count[key(packing, &packing->raw[i])]++] = packing->raw[i];
    }
}

static int64_t longest_first(const struct row_packing *packing, const struct packing_entry *entry)
{
    return packing->length - entry->length;
}

static int64_t by_row(const struct row_packing *packing, const struct packing_entry *entry)
{
    (void)packing;
    return entry->row;
}

/* The least room of at least `length` that a row has, -1: none. */
static int64_t least_room(const struct row_packing *packing, int64_t length)
{
    int64_t word = length / WORD;
    uint64_t bits = packing->open[word] & (UINT64_MAX << (length % WORD));
    while (bits == 0 && word < packing->length / WORD) {
        bits = packing->open[++word];
    }
    return bits != 0 ? word * WORD + __builtin_ctzll(bits) : -1;
}

static void put_row(struct row_packing *packing, int64_t row, int64_t room)
{
    packing->next[row] = packing->head[room];
    packing->head[room] = row;
    packing->open[room / WORD] |= (uint64_t)1 << (room % WORD);
}

static int64_t take_row(struct row_packing *packing, int64_t room)
{
    const int64_t row = packing->head[room];
    packing->head[room] = packing->next[row];
    if (packing->head[room] < 0) {
        packing->open[room / WORD] &= ~((uint64_t)1 << (room % WORD));
    }
    return row;
}

/* Packs a window; returns its rows. Afterwards `sorted` holds its documents by row. */
static int64_t pack(struct row_packing *packing, int64_t window, bool counted)
{
    int64_t rows = 0;
    collect(packing, window, counted);
    sort(packing, packing->length, longest_first);
    memset(packing->open, 0, (size_t)(packing->length / WORD + 1) * sizeof *packing->open);
    for (int64_t i = 0; i <= packing->length; i++) {
        packing->head[i] = -1;
    }
    for (int64_t i = 0; i < packing->entries; i++) {
        struct packing_entry *entry = &packing->sorted[i];
        const int64_t room = least_room(packing, entry->length);
        entry->row = room >= 0 ? take_row(packing, room) : rows++;
        put_row(packing, entry->row, (room >= 0 ? room : packing->length) - entry->length);
    }
    memcpy(packing->raw, packing->sorted, (size_t)packing->entries * sizeof *packing->raw);
    sort(packing, rows, by_row);
    packing->window = window;
    return rows;
}

static enum status reserve(struct row_packing *packing)
{
    const size_t room = (size_t)packing->length + 1,
                 most = room > PACKING_WINDOW ? room : PACKING_WINDOW;
    packing->rows_before = calloc((size_t)packing->windows + 1, sizeof *packing->rows_before);
    packing->sorted = calloc(PACKING_WINDOW, sizeof *packing->sorted);
    packing->raw = calloc(PACKING_WINDOW, sizeof *packing->raw);
    packing->count = calloc(most + 2, sizeof *packing->count);
    packing->head = calloc(room, sizeof *packing->head);
    packing->next = calloc(PACKING_WINDOW, sizeof *packing->next);
    packing->open = calloc(room / WORD + 1, sizeof *packing->open);
    return packing->rows_before != NULL && packing->sorted != NULL && packing->raw != NULL &&
                   packing->count != NULL && packing->head != NULL && packing->next != NULL &&
                   packing->open != NULL
               ? STATUS_OK
               : status_fail(STATUS_RESOURCE, "%s: out of memory for packing its documents",
                             packing->store->path);
}

enum status packing_init(struct row_packing *packing, const struct token_store *store,
                         int64_t length, bool shuffle, uint64_t key)
{
    *packing =
        (struct row_packing){.store = store,
                             .length = length,
                             .shuffle = shuffle,
                             .key = key,
                             .windows = (store->documents + PACKING_WINDOW - 1) / PACKING_WINDOW,
                             .window = -1};
    TRY(reserve(packing));
    for (int64_t w = 0; w < packing->windows; w++) {
        packing->rows_before[w + 1] = packing->rows_before[w] + pack(packing, w, true);
    }
    packing->rows = packing->rows_before[packing->windows];
    return packing->rows > 0
               ? STATUS_OK
               : status_fail(STATUS_DATA,
                             "%s: none of its %lld documents has two tokens: there is nothing to "
                             "pack",
                             store->path, (long long)store->documents);
}

void packing_free(struct row_packing *packing)
{
    free(packing->rows_before);
    free(packing->sorted);
    free(packing->raw);
    free(packing->count);
    free(packing->head);
    free(packing->next);
    free(packing->open);
    *packing = (struct row_packing){0};
}

/* The first entry of at least this row. */
static int64_t lower_bound(const struct row_packing *packing, int64_t row)
{
    int64_t low = 0, high = packing->entries;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (packing->sorted[middle].row < row) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

int64_t packing_row(struct row_packing *packing, int64_t row, const struct packing_entry **entries)
{
    int64_t low = 0, high = packing->windows - 1;
    while (low < high) { /* the last window that begins at or before the row: it has rows */
        const int64_t middle = (low + high + 1) / 2;
        if (packing->rows_before[middle] <= row) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    if (packing->window != low) {
        (void)pack(packing, low, false);
    }
    int64_t own = row - packing->rows_before[low];
    if (packing->shuffle) { /* they lie by length */
        own = (int64_t)rng_permute(
            rng_subkey(packing->key, (uint64_t)low), (uint64_t)own,
            (uint64_t)(packing->rows_before[low + 1] - packing->rows_before[low]));
    }
    const int64_t first = lower_bound(packing, own);
    *entries = packing->sorted + first;
    return lower_bound(packing, own + 1) - first;
}
