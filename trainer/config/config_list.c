#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/config/config_table.h"

/* One item of a list as a field of its own, so that items are checked and printed as values are. */
static struct field item_field(const struct field *field, int64_t index)
{
    struct field item = *field;
    const bool text = field->kind == FIELD_TEXTS;
    item.kind = text ? FIELD_TEXT : FIELD_REAL;
    item.initial = "0"; /* an item is never null */
    item.offset += text ? offsetof(struct config_texts, item) + (size_t)index * sizeof(char *)
                        : offsetof(struct config_reals, item) + (size_t)index * sizeof(double);
    return item;
}

/* Both kinds of list start with their count. */
static int64_t *count_of(const struct config *config, const struct field *field)
{
    return (int64_t *)(uintptr_t)((const char *)config + field->offset);
}

void config_list_free(struct config *config, const struct field *field)
{
    const bool text = field->kind == FIELD_TEXTS;
    for (int64_t i = 0; i < *count_of(config, field) && text; i++) {
        char **item = (char **)(void *)((char *)config + item_field(field, i).offset);
        free(*item);
        *item = NULL;
    }
    *count_of(config, field) = 0;
}

bool config_list_set(struct config *config, const struct field *field, const char *const *items,
                     int64_t count, char *why, size_t bytes)
{
    const bool text = field->kind == FIELD_TEXTS;
    size_t room = CONFIG_TEXT_BYTES;
    config_list_free(config, field);
    if (count > CONFIG_MOST_ITEMS) {
        snprintf(why, bytes, "%lld items, at most %d are taken", (long long)count,
                 CONFIG_MOST_ITEMS);
        return false;
    }
    for (int64_t i = 0; i < count; i++) {
        const struct field item = item_field(field, i);
        const size_t length = strlen(items[i]) + 2;
        if (length == 2 || length > room) {
            snprintf(why, bytes, length == 2 ? "item %d is empty" : "longer than %d bytes",
                     length == 2 ? (int)i + 1 : CONFIG_TEXT_BYTES);
            return false;
        }
        if (!config_set(config, &item, items[i], text, why, bytes)) {
            return false;
        }
        room -= length;
        *count_of(config, field) = i + 1;
    }
    return true;
}

static bool split(struct config *config, const struct field *field, const char *text, char *why,
                  size_t bytes)
{
    static const char spaces[] = " ";
    const char *items[CONFIG_MOST_ITEMS + 1];
    const size_t length = strlen(text);
    const bool brackets = length >= 2 && text[0] == '[' && text[length - 1] == ']';
    char *copy = strndup(text + brackets, length - 2 * (size_t)brackets), *next = copy;
    int64_t count = 0;
    if (copy == NULL) {
        snprintf(why, bytes, "out of memory");
        return false;
    }
    while (next != NULL && next[strspn(next, spaces)] != '\0' && count <= CONFIG_MOST_ITEMS) {
        char *item = next + strspn(next, spaces), *comma = strchr(item, ',');
        next = comma != NULL ? comma + 1 : NULL;
        char *end = comma != NULL ? comma : item + strlen(item);
        while (end > item && end[-1] == ' ') {
            end--;
        }
        *end = '\0';
        items[count++] = item;
    }
    const bool good = config_list_set(config, field, items, count, why, bytes);
    free(copy);
    return good;
}

bool config_list_read(struct config *config, const struct field *field, const char *text,
                      bool quoted, char *why, size_t bytes)
{
    if (!quoted && (strcmp(text, "null") == 0 || strcmp(text, "~") == 0)) {
        return config_list_set(config, field, NULL, 0, why, bytes);
    }
    if (!quoted) {
        return split(config, field, text, why, bytes);
    }
    if (field->kind == FIELD_REALS) {
        snprintf(why, bytes, "\"%s\" is text: write it without quotes", text);
        return false;
    }
    return config_list_set(config, field, &text, 1, why, bytes);
}

void config_list_show(const struct config *config, const struct field *field, char *out,
                      size_t bytes)
{
    size_t at = (size_t)snprintf(out, bytes, "[");
    for (int64_t i = 0; i < *count_of(config, field); i++) {
        const struct field item = item_field(field, i);
        at += (size_t)snprintf(out + at, bytes - at, i > 0 ? ", " : "");
        config_show(config, &item, out + at, bytes - at);
        at += strlen(out + at);
    }
    snprintf(out + at, bytes - at, "]");
}
