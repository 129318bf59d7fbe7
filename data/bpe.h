/* bpe: byte-level byte-pair encoding (Sennrich et al. 2016; over bytes as in GPT-2).
 *
 * A word starts as one symbol a byte; again and again the adjacent pair whose merge has the lowest
 * rank, of equals the leftmost, becomes one symbol, until no pair has a merge. A heap of pairs
 * makes that n log n in the word's bytes, so a text without a space costs no more per byte than
 * others by much.
 */
#ifndef DATA_BPE_H
#define DATA_BPE_H

#include "data/token_table.h"

/* One pair that may become one symbol. */
struct bpe_merge {
    uint64_t pair; /* left id << 32 | right id; BPE_NO_PAIR: a free slot */
    uint32_t rank, id;
};
#define BPE_NO_PAIR UINT64_MAX

/* Read-only once made, shared by threads. A zeroed one is empty. */
struct bpe {
    const struct token_table *tokens; /* borrowed: bytes of the ids */
    uint32_t byte_id[256];            /* the symbol of each byte */
    struct bpe_merge *merges;         /* [slots] owned: by hash of the pair */
    uint64_t slots;
    int64_t count;    /* merges */
    bool whole_first; /* a word that is a token is that token, whatever the merges say */
};

/* Local. Looks up the tokens of single bytes. Errors: STATUS_DATA naming a byte without a token;
 * STATUS_RESOURCE. */
enum status bpe_init(struct bpe *bpe, const struct token_table *tokens, int64_t merges,
                     bool whole_first) __attribute__((warn_unused_result));
/* Local. The next merge, in order of rank; at most as many as bpe_init was told. Errors:
 * STATUS_DATA when one of the three is no token. */
enum status bpe_add_merge(struct bpe *bpe, const char *left, size_t left_bytes, const char *right,
                          size_t right_bytes) __attribute__((warn_unused_result));
/* The merge of two ids, NULL: none. */
const struct bpe_merge *bpe_find_merge(const struct bpe *bpe, uint32_t left, uint32_t right);
void bpe_free(struct bpe *bpe); /* accepts a zeroed one; may be called twice */

/* What one thread encodes with. A zeroed one is ready. */
struct bpe_scratch {
    struct bpe_symbol {
        uint32_t id;
        int32_t before, after; /* neighbours; -1: none */
    } * symbols;               /* [room] owned */
    struct bpe_pair {
        uint64_t order; /* rank << 32 | place: the least is merged first */
        uint32_t id;    /* of what the pair becomes */
    } * heap;           /* [3 * room] owned */
    int64_t room, heap_count;
    struct bpe_word *cache; /* owned: ids of words seen lately */
};

/* Appends the ids of one word of any bytes. Errors: STATUS_RESOURCE; STATUS_DATA for 2 GiB and
 * more. */
enum status bpe_encode(const struct bpe *bpe, struct bpe_scratch *scratch, const char *word,
                       size_t bytes, struct id_list *out) __attribute__((warn_unused_result));
void bpe_scratch_free(struct bpe_scratch *scratch);

#endif
