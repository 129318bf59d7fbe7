/* packing: documents, each a sample of its own, laid into rows of T tokens by best-fit.
 *
 * Documents in a keyed random order (file order without shuffle) are taken PACKING_WINDOW at a
 * time; of a window the longest is placed first, each into the fullest row that still holds it
 * (best-fit decreasing, Johnson 1974). A document of n tokens takes n - 1 places: its last token is
 * a label only. One of more than T + 1 tokens is cut to T + 1, one of fewer than two has no label
 * and is left out: both are counted. With shuffle the rows of a window come in random order.
 * Windows do not depend on each other, nor on the epoch, so that one number per window (rows before
 * it) finds any row: 8 bytes for 1024 documents, and one pass over their lengths when the file is
 * opened.
 */
#ifndef DATA_PACKING_H
#define DATA_PACKING_H

#include "data/token_store.h"

enum { PACKING_WINDOW = 1024 };

struct packing_entry {
    int64_t document;
    int64_t length; /* places in the row: inputs with a label */
    int64_t row;    /* in its window */
};

/* One thread at a time: packing_row keeps the window it packed last. */
struct row_packing {
    const struct token_store *store; /* borrowed */
    int64_t length;                  /* T */
    bool shuffle;
    uint64_t key;
    int64_t windows, rows;
    int64_t *rows_before;         /* [windows + 1] owned */
    int64_t cut, cut_tokens;      /* documents longer than T + 1; their tokens not used */
    int64_t empty;                /* documents of fewer than two tokens */
    int64_t used;                 /* places of all rows that hold an input with a label */
    int64_t window;               /* packed last, -1: none */
    int64_t entries;              /* of it */
    struct packing_entry *sorted; /* [PACKING_WINDOW] owned: by row */
    struct packing_entry *raw;    /* [PACKING_WINDOW] owned: scratch */
    int64_t *count;               /* [max(T, PACKING_WINDOW) + 2] owned: scratch */
    int64_t *head, *next;         /* [T + 1], [PACKING_WINDOW] owned: rows by room left */
    uint64_t *open;               /* [T / 64 + 1] owned: which rooms have a row */
};

/* Local. Errors: STATUS_DATA when no document has a label; STATUS_RESOURCE. Free it either way. */
enum status packing_init(struct row_packing *packing, const struct token_store *store,
                         int64_t length, bool shuffle, uint64_t key)
    __attribute__((warn_unused_result));
void packing_free(struct row_packing *packing); /* accepts a zeroed one; may be called twice */

/* The documents of row `row`, in order: *entries is the packing's own until the next call. Returns
 * how many. */
int64_t packing_row(struct row_packing *packing, int64_t row, const struct packing_entry **entries);

#endif
