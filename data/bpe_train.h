/* bpe_train: which pairs a byte-level BPE merges, learnt from counted words.
 *
 * Each word begins as one symbol a byte; again and again the pair that occurs most often, of equals
 * the one of the smallest ids, becomes a symbol (Sennrich et al. 2016, algorithm 1; ties as the
 * tokenizers library breaks them). Counts are kept by pair with the words it may be in, the most
 * frequent pair comes from a heap whose entries are corrected when they are met, and only words
 * with the merged pair are touched.
 */
#ifndef DATA_BPE_TRAIN_H
#define DATA_BPE_TRAIN_H

#include "data/token_table.h"

enum { BPE_TRAIN_WORD = 4096 }; /* bytes; longer words are counted in pieces of that many */

/* A zeroed one is empty. */
struct bpe_train {
    /* words */
    struct byte_list text; /* of all different ones */
    struct train_word {
        size_t at;
        uint32_t bytes, length; /* length: in symbols, from symbols[at] */
        int64_t count;
    } * words;            /* [word_count] owned */
    uint32_t *word_slots; /* [word_slot_count] owned: index + 1 by hash, 0: free */
    uint64_t word_slot_count;
    uint32_t word_count, word_room;
    /* pairs */
    uint32_t *symbols; /* [text.count] owned */
    struct train_pair {
        uint64_t ids; /* left << 32 | right */
        int64_t count;
        uint32_t *words; /* [word_count] owned: where it is or was */
        uint32_t word_count, word_room;
        uint32_t turn;    /* when it was added to last */
    } * pairs;            /* [pair_count] owned */
    uint32_t *pair_slots; /* [pair_slot_count] owned: index + 1 by hash, 0: free */
    uint64_t pair_slot_count;
    uint32_t pair_count, pair_room;
    uint32_t *grown; /* [grown_count] owned: pairs added to in this turn */
    uint32_t grown_count, grown_room, turn;
    struct train_entry {
        int64_t count;
        uint64_t ids;
        uint32_t pair;
    } * heap; /* [heap_count] owned */
    size_t heap_count, heap_room;
};

/* What the pair of most occurrences becomes: *id; or *wanted = false: it stays a pair. *more =
 * false: this was the last. `count`: its occurrences. */
typedef enum status bpe_train_use(void *context, uint32_t left, uint32_t right, int64_t count,
                                  uint32_t *id, bool *wanted, bool *more);

/* Local. Counts a word of any bytes once more. Errors: STATUS_RESOURCE. */
enum status bpe_train_add(struct bpe_train *train, const char *word, size_t bytes)
    __attribute__((warn_unused_result));
/* Local. Calls `use` with one pair after another while there is one that occurs `least` times or
 * more; byte_id: the symbols of bytes. To be called once. Errors: of `use`; STATUS_RESOURCE. */
enum status bpe_train_run(struct bpe_train *train, const uint32_t byte_id[256], int64_t least,
                          bpe_train_use *use, void *context) __attribute__((warn_unused_result));
void bpe_train_free(struct bpe_train *train); /* accepts a zeroed one; may be called twice */

#endif
