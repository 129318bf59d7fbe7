#define _DEFAULT_SOURCE /* madvise */
#include "data/lists.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* The next room >= least, in elements of `size` bytes; 0 when that is more than memory has. */
static size_t next_room(size_t room, size_t least, size_t size)
{
    room = room < 64 ? 64 : room;
    while (room < least) {
        if (room > SIZE_MAX / 2 / size) {
            return 0;
        }
        room *= 2;
    }
    return room;
}

/* Advice only: the first touch of a large document is half of what prepare takes for it, page by
 * small page. NOTE: all of a mapping is advised, the page of malloc's header too: realloc moves no
 * mapping of two kinds, and would copy. */
static void use_large_pages(void *data, size_t bytes)
{
    enum { PAGE = 4096, LARGE_PAGE = 1 << 21 };
    const size_t header = (uintptr_t)data % PAGE;
    if (bytes >= 2 * (size_t)LARGE_PAGE) {
        (void)madvise((char *)data - header, (header + bytes + PAGE - 1) / PAGE * PAGE,
                      MADV_HUGEPAGE);
    }
}

static enum status grow(void **data, size_t *room, size_t least, size_t size)
{
    const size_t wanted = next_room(*room, least, size);
    void *grown = wanted > 0 ? realloc(*data, wanted * size) : NULL;
    if (grown == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for a document of %zu bytes",
                           least * size);
    }
    use_large_pages(grown, wanted * size);
    *data = grown;
    *room = wanted;
    return STATUS_OK;
}

enum status byte_list_reserve(struct byte_list *list, size_t more)
{
    if (list->room - list->count > more) {
        return STATUS_OK;
    }
    void *data = list->data;
    TRY(grow(&data, &list->room, list->count + more + 1, 1));
    list->data = data;
    return STATUS_OK;
}

enum status id_list_reserve(struct id_list *list, size_t more)
{
    if (list->room - list->count >= more) {
        return STATUS_OK;
    }
    void *data = list->data;
    TRY(grow(&data, &list->room, list->count + more, sizeof *list->data));
    list->data = data;
    return STATUS_OK;
}

enum status byte_list_add(struct byte_list *list, const void *data, size_t bytes)
{
    TRY(byte_list_reserve(list, bytes));
    if (bytes > 0) {
        memcpy(list->data + list->count, data, bytes);
    }
    list->count += bytes;
    list->data[list->count] = '\0';
    return STATUS_OK;
}

enum status id_list_add(struct id_list *list, uint32_t id)
{
    TRY(id_list_reserve(list, 1));
    list->data[list->count++] = id;
    return STATUS_OK;
}

void byte_list_free(struct byte_list *list)
{
    free(list->data);
    *list = (struct byte_list){0};
}

void id_list_free(struct id_list *list)
{
    free(list->data);
    *list = (struct id_list){0};
}
