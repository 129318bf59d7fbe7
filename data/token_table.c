#include "data/token_table.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/base/hash.h"

/* Ids beyond this in a file are a mistake, not a vocabulary. */
enum { MOST_IDS = 1 << 24 };

static bool same(const struct token_table *table, int32_t id, const char *text, size_t bytes)
{
    const struct token_span *span = &table->spans[id];
    return (size_t)span->bytes == bytes &&
           (bytes == 0 || memcmp(table->text.data + span->at, text, bytes) == 0);
}

/* The slot of these bytes: theirs, or the free one where they belong. */
static uint64_t find_slot(const struct token_table *table, const char *text, size_t bytes)
{
    uint64_t slot = hash_bytes(text, bytes) & (table->slot_count - 1);
    while (table->slots[slot] != TOKEN_NONE && !same(table, table->slots[slot], text, bytes)) {
        slot = (slot + 1) & (table->slot_count - 1);
    }
    return slot;
}

static enum status grow_slots(struct token_table *table)
{
    const uint64_t count = table->slot_count > 0 ? 2 * table->slot_count : 1024;
    int32_t *old = table->slots, *slots = malloc((size_t)count * sizeof *slots);
    const uint64_t before = table->slot_count;
    if (slots == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for %llu tokens",
                           (unsigned long long)count);
    }
    memset(slots, 0xff, (size_t)count * sizeof *slots);
    table->slots = slots;
    table->slot_count = count;
    for (uint64_t i = 0; i < before; i++) {
        if (old[i] != TOKEN_NONE) {
            size_t bytes = 0;
            const char *text = token_table_text(table, old[i], &bytes);
            slots[find_slot(table, text, bytes)] = old[i];
        }
    }
    free(old);
    return STATUS_OK;
}

static enum status grow_spans(struct token_table *table, int64_t id)
{
    if (id >= table->room) {
        int64_t room = table->room > 0 ? table->room : 1024;
        while (room <= id) {
            room *= 2;
        }
        struct token_span *spans = realloc(table->spans, (size_t)room * sizeof *spans);
        if (spans == NULL) {
            return status_fail(STATUS_RESOURCE, "out of memory for %lld tokens", (long long)room);
        }
        table->spans = spans;
        table->room = room;
    }
    for (; table->size <= id; table->size++) {
        table->spans[table->size] = (struct token_span){.bytes = -1};
    }
    return STATUS_OK;
}

enum status token_table_add(struct token_table *table, int64_t id, const char *text, size_t bytes)
{
    if (id < 0 || id >= MOST_IDS || bytes > INT32_MAX) {
        return status_fail(STATUS_DATA, "token id %lld of %zu bytes: ids are from 0 to %d",
                           (long long)id, bytes, MOST_IDS - 1);
    }
    if (2 * (table->used + 1) > (int64_t)table->slot_count) {
        TRY(grow_slots(table));
    }
    TRY(grow_spans(table, id));
    const uint64_t slot = find_slot(table, text, bytes);
    if (table->slots[slot] == id) {
        return STATUS_OK;
    }
    if (table->slots[slot] != TOKEN_NONE || table->spans[id].bytes >= 0) {
        return status_fail(STATUS_DATA, "token '%.*s' has id %lld: that one or the text is taken",
                           bytes < 64 ? (int)bytes : 64, text, (long long)id);
    }
    table->spans[id] = (struct token_span){.at = table->text.count, .bytes = (int32_t)bytes};
    TRY(byte_list_add(&table->text, text, bytes));
    table->slots[slot] = (int32_t)id;
    table->used++;
    return STATUS_OK;
}

int32_t token_table_find(const struct token_table *table, const char *text, size_t bytes)
{
    return table->slot_count > 0 ? table->slots[find_slot(table, text, bytes)] : TOKEN_NONE;
}

const char *token_table_text(const struct token_table *table, int64_t id, size_t *bytes)
{
    if (id < 0 || id >= table->size || table->spans[id].bytes < 0) {
        return NULL;
    }
    *bytes = (size_t)table->spans[id].bytes;
    return table->text.data + table->spans[id].at;
}

void token_table_free(struct token_table *table)
{
    byte_list_free(&table->text);
    free(table->spans);
    free(table->slots);
    *table = (struct token_table){0};
}
