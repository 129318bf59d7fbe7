#include "data/phrases.h"

#include <assert.h>
#include <stdlib.h>

static enum status new_node(struct phrases *phrases, unsigned char byte, int32_t *link)
{
    if (phrases->count + 1 >= phrases->room) {
        const int32_t room = phrases->room > 0 ? 2 * phrases->room : 256;
        struct phrase_node *nodes = realloc(phrases->nodes, (size_t)room * sizeof *nodes);
        if (nodes == NULL) {
            return status_fail(STATUS_RESOURCE, "out of memory for added tokens");
        }
        phrases->nodes = nodes;
        phrases->room = room;
    }
    phrases->nodes[++phrases->count] = (struct phrase_node){.id = -1, .byte = byte};
    *link = phrases->count;
    return STATUS_OK;
}

/* The node behind `list`'s first that has this byte; 0: none. */
static int32_t among(const struct phrases *phrases, int32_t list, unsigned char byte)
{
    while (list != 0 && phrases->nodes[list].byte != byte) {
        list = phrases->nodes[list].sibling;
    }
    return list;
}

enum status phrases_add(struct phrases *phrases, const char *text, size_t bytes, int32_t id)
{
    assert(bytes >= 1);
    const unsigned char *byte = (const unsigned char *)text;
    int32_t node = phrases->first[byte[0]];
    if (node == 0) {
        TRY(new_node(phrases, byte[0], &node));
        phrases->first[byte[0]] = node;
    }
    for (size_t i = 1; i < bytes; i++) {
        int32_t next = among(phrases, phrases->nodes[node].child, byte[i]);
        if (next == 0) {
            TRY(new_node(phrases, byte[i], &next));
            phrases->nodes[next].sibling = phrases->nodes[node].child;
            phrases->nodes[node].child = next;
        }
        node = next;
    }
    phrases->nodes[node].id = id;
    return STATUS_OK;
}

int32_t phrases_find(const struct phrases *phrases, const char *text, size_t bytes, size_t from,
                     size_t *at, size_t *length)
{
    const unsigned char *byte = (const unsigned char *)text;
    if (phrases->count == 0) {
        return -1;
    }
    for (size_t i = from; i < bytes; i++) {
        int32_t node = phrases->first[byte[i]], id = -1;
        for (size_t j = i + 1; node != 0; j++) {
            if (phrases->nodes[node].id >= 0) {
                id = phrases->nodes[node].id;
                *at = i;
                *length = j - i;
            }
            node = j < bytes ? among(phrases, phrases->nodes[node].child, byte[j]) : 0;
        }
        if (id >= 0) {
            return id;
        }
    }
    return -1;
}

void phrases_free(struct phrases *phrases)
{
    free(phrases->nodes);
    *phrases = (struct phrases){0};
}
