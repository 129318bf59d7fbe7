#include "data/bpe_train.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/base/hash.h"

static enum status no_memory(void)
{
    return status_fail(STATUS_RESOURCE, "out of memory for the words of the text");
}

/* Room for one more of `count` elements. */
static enum status grow(void *array, uint64_t count, uint64_t *room, size_t width)
{
    if (count < *room) {
        return STATUS_OK;
    }
    const uint64_t more = *room > 0 ? 2 * *room : 16;
    void **at = array, *grown = more < UINT32_MAX ? realloc(*at, (size_t)more * width) : NULL;
    if (grown == NULL) {
        return no_memory();
    }
    *at = grown;
    *room = more;
    return STATUS_OK;
}

/* --- words --- */

static uint64_t word_slot(const struct bpe_train *train, const char *word, size_t bytes)
{
    uint64_t slot = hash_bytes(word, bytes) & (train->word_slot_count - 1);
    for (; train->word_slots[slot] != 0; slot = (slot + 1) & (train->word_slot_count - 1)) {
        const struct train_word *there = &train->words[train->word_slots[slot] - 1];
        if (there->bytes == bytes && memcmp(train->text.data + there->at, word, bytes) == 0) {
            break;
        }
    }
    return slot;
}

static enum status more_word_slots(struct bpe_train *train)
{
    const uint64_t count = train->word_slot_count > 0 ? 2 * train->word_slot_count : 1 << 12;
    uint32_t *slots = calloc(count, sizeof *slots);
    if (slots == NULL) {
        return no_memory();
    }
    free(train->word_slots);
    train->word_slots = slots;
    train->word_slot_count = count;
    for (uint32_t i = 0; i < train->word_count; i++) {
        const struct train_word *word = &train->words[i];
        slots[word_slot(train, train->text.data + word->at, word->bytes)] = i + 1;
    }
    return STATUS_OK;
}

static enum status add_piece(struct bpe_train *train, const char *word, size_t bytes)
{
    if (2 * ((uint64_t)train->word_count + 1) > train->word_slot_count) {
        TRY(more_word_slots(train));
    }
    uint32_t *slot = &train->word_slots[word_slot(train, word, bytes)];
    if (*slot == 0) {
        uint64_t room = train->word_room;
        TRY(grow(&train->words, train->word_count, &room, sizeof *train->words));
        train->word_room = (uint32_t)room;
        const size_t at = train->text.count;
        TRY(byte_list_add(&train->text, word, bytes));
        train->words[train->word_count++] =
            (struct train_word){.at = at, .bytes = (uint32_t)bytes, .length = (uint32_t)bytes};
        *slot = train->word_count;
    }
    train->words[*slot - 1].count++;
    return STATUS_OK;
}

enum status bpe_train_add(struct bpe_train *train, const char *word, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += BPE_TRAIN_WORD) {
        TRY(add_piece(train, word + at, bytes - at < BPE_TRAIN_WORD ? bytes - at : BPE_TRAIN_WORD));
    }
    return STATUS_OK;
}

/* --- pairs --- */

static uint64_t pair_slot(const struct bpe_train *train, uint64_t ids)
{
    uint64_t slot = (ids * 0x9e3779b97f4a7c15u) >> 32 & (train->pair_slot_count - 1);
    while (train->pair_slots[slot] != 0 && train->pairs[train->pair_slots[slot] - 1].ids != ids) {
        slot = (slot + 1) & (train->pair_slot_count - 1);
    }
    return slot;
}

static enum status more_pair_slots(struct bpe_train *train)
{
    const uint64_t count = train->pair_slot_count > 0 ? 2 * train->pair_slot_count : 1 << 12;
    uint32_t *slots = calloc(count, sizeof *slots);
    if (slots == NULL) {
        return no_memory();
    }
    free(train->pair_slots);
    train->pair_slots = slots;
    train->pair_slot_count = count;
    for (uint32_t i = 0; i < train->pair_count; i++) {
        slots[pair_slot(train, train->pairs[i].ids)] = i + 1;
    }
    return STATUS_OK;
}

/* The index of a pair, which is made where it is new. */
static enum status find_pair(struct bpe_train *train, uint32_t left, uint32_t right, uint32_t *at)
{
    const uint64_t ids = (uint64_t)left << 32 | right;
    if (2 * ((uint64_t)train->pair_count + 1) > train->pair_slot_count) {
        TRY(more_pair_slots(train));
    }
    uint32_t *slot = &train->pair_slots[pair_slot(train, ids)];
    if (*slot == 0) {
        uint64_t room = train->pair_room;
        TRY(grow(&train->pairs, train->pair_count, &room, sizeof *train->pairs));
        train->pair_room = (uint32_t)room;
        train->pairs[train->pair_count++] = (struct train_pair){.ids = ids};
        *slot = train->pair_count;
    }
    *at = *slot - 1;
    return STATUS_OK;
}

/* The pair occurs `count` times more, in this word. */
static enum status add_pair(struct bpe_train *train, uint32_t left, uint32_t right, uint32_t word,
                            int64_t count)
{
    uint32_t at;
    TRY(find_pair(train, left, right, &at));
    struct train_pair *pair = &train->pairs[at];
    pair->count += count;
    if (pair->turn != train->turn) {
        uint64_t grown_room = train->grown_room;
        pair->turn = train->turn;
        TRY(grow(&train->grown, train->grown_count, &grown_room, sizeof *train->grown));
        train->grown_room = (uint32_t)grown_room;
        train->grown[train->grown_count++] = at;
    }
    if (pair->word_count > 0 && pair->words[pair->word_count - 1] == word) {
        return STATUS_OK;
    }
    uint64_t room = pair->word_room;
    TRY(grow(&pair->words, pair->word_count, &room, sizeof *pair->words));
    pair->word_room = (uint32_t)room;
    pair->words[pair->word_count++] = word;
    return STATUS_OK;
}

static enum status remove_pair(struct bpe_train *train, uint32_t left, uint32_t right,
                               int64_t count)
{
    uint32_t at;
    TRY(find_pair(train, left, right, &at));
    train->pairs[at].count -= count;
    return STATUS_OK;
}

/* --- the most frequent pair --- */

static bool comes_first(const struct train_entry *a, const struct train_entry *b)
{
    return a->count != b->count ? a->count > b->count : a->ids < b->ids;
}

static enum status push(struct bpe_train *train, uint32_t pair)
{
    uint64_t room = train->heap_room;
    TRY(grow(&train->heap, train->heap_count, &room, sizeof *train->heap));
    train->heap_room = room;
    const struct train_entry entry = {
        .count = train->pairs[pair].count, .ids = train->pairs[pair].ids, .pair = pair};
    size_t at = train->heap_count++;
    for (; at > 0 && comes_first(&entry, &train->heap[(at - 1) / 2]); at = (at - 1) / 2) {
        train->heap[at] = train->heap[(at - 1) / 2];
    }
    train->heap[at] = entry;
    return STATUS_OK;
}

static struct train_entry pop(struct bpe_train *train)
{
    struct train_entry *heap = train->heap;
    const struct train_entry first = heap[0], last = heap[--train->heap_count];
    size_t at = 0, child;
    while ((child = 2 * at + 1) < train->heap_count) {
        child += child + 1 < train->heap_count && comes_first(&heap[child + 1], &heap[child]);
        if (!comes_first(&heap[child], &last)) {
            break;
        }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return first;
}

/* Every pair that was added to in this turn. */
static enum status push_grown(struct bpe_train *train)
{
    for (uint32_t i = 0; i < train->grown_count; i++) {
        TRY(push(train, train->grown[i]));
    }
    train->grown_count = 0;
    train->turn++;
    return STATUS_OK;
}

/* The pair that occurs most often now. Entries may be of an older, larger count: such go back with
 * the right one; a count that has grown since was pushed again. */
static enum status most_frequent(struct bpe_train *train, int64_t least, uint32_t *pair,
                                 bool *found)
{
    *found = false;
    while (train->heap_count > 0) {
        const struct train_entry entry = pop(train);
        const int64_t count = train->pairs[entry.pair].count;
        if (count == entry.count) {
            *pair = entry.pair;
            *found = count >= least;
            break;
        }
        if (count >= least && count < entry.count) {
            TRY(push(train, entry.pair));
        }
    }
    return STATUS_OK;
}

/* --- merging --- */

/* In one word; `id` is what the pair becomes. */
static enum status merge_word(struct bpe_train *train, uint32_t index, uint64_t ids, uint32_t id)
{
    struct train_word *word = &train->words[index];
    uint32_t *symbols = train->symbols + word->at;
    const uint32_t left = (uint32_t)(ids >> 32), right = (uint32_t)ids, length = word->length;
    uint32_t to = 0;
    for (uint32_t from = 0; from < length; from++) {
        if (symbols[from] != left || from + 1 == length || symbols[from + 1] != right) {
            symbols[to++] = symbols[from];
            continue;
        }
        if (to > 0) {
            TRY(remove_pair(train, symbols[to - 1], left, word->count));
            TRY(add_pair(train, symbols[to - 1], id, index, word->count));
        }
        if (from + 2 < length) {
            TRY(remove_pair(train, right, symbols[from + 2], word->count));
            TRY(add_pair(train, id, symbols[from + 2], index, word->count));
        }
        symbols[to++] = id;
        from++;
    }
    word->length = to;
    return STATUS_OK;
}

static enum status merge(struct bpe_train *train, uint32_t at, uint32_t id)
{
    struct train_pair *pair = &train->pairs[at];
    const uint64_t ids = pair->ids;
    const uint32_t count = pair->word_count;
    uint32_t *words = pair->words; /* nothing joins them now: what comes of a pair is longer */
    enum status status = STATUS_OK;
    pair->words = NULL;
    pair->word_count = pair->word_room = 0;
    for (uint32_t i = 0; i < count && status == STATUS_OK; i++) {
        status = merge_word(train, words[i], ids, id);
    }
    train->pairs[at].count = 0;
    free(words);
    return status == STATUS_OK ? push_grown(train) : status;
}

static enum status count_pairs(struct bpe_train *train, const uint32_t byte_id[256])
{
    train->symbols = malloc((train->text.count + 1) * sizeof *train->symbols);
    if (train->symbols == NULL) {
        return no_memory();
    }
    for (size_t i = 0; i < train->text.count; i++) {
        train->symbols[i] = byte_id[(unsigned char)train->text.data[i]];
    }
    train->turn = 1;
    for (uint32_t i = 0; i < train->word_count; i++) {
        const struct train_word *word = &train->words[i];
        const uint32_t *symbols = train->symbols + word->at;
        for (uint32_t k = 0; k + 1 < word->length; k++) {
            TRY(add_pair(train, symbols[k], symbols[k + 1], i, word->count));
        }
    }
    return push_grown(train);
}

enum status bpe_train_run(struct bpe_train *train, const uint32_t byte_id[256], int64_t least,
                          bpe_train_use *use, void *context)
{
    TRY(count_pairs(train, byte_id));
    for (bool more = true; more;) {
        uint32_t at = 0, id = 0;
        bool found = false, wanted = true;
        TRY(most_frequent(train, least, &at, &found));
        if (!found) {
            break;
        }
        const struct train_pair *pair = &train->pairs[at];
        TRY(use(context, (uint32_t)(pair->ids >> 32), (uint32_t)pair->ids, pair->count, &id,
                &wanted, &more));
        if (wanted) {
            TRY(merge(train, at, id));
        }
    }
    return STATUS_OK;
}

void bpe_train_free(struct bpe_train *train)
{
    for (uint32_t i = 0; i < train->pair_count; i++) {
        free(train->pairs[i].words);
    }
    byte_list_free(&train->text);
    free(train->words);
    free(train->word_slots);
    free(train->symbols);
    free(train->pairs);
    free(train->pair_slots);
    free(train->grown);
    free(train->heap);
    *train = (struct bpe_train){0};
}
