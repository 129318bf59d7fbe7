#include "data/compose.h"

#include <stdlib.h>
#include <utf8proc.h>

#include "data/utf8.h"

bool compose_changes(const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        if ((unsigned char)text[i] >= 0xcc) {
            return true;
        }
    }
    return false;
}

static enum status compose_run(struct byte_list *out, const char *text, size_t bytes)
{
    utf8proc_uint8_t *composed = NULL;
    if (!compose_changes(text, bytes)) {
        return byte_list_add(out, text, bytes);
    }
    const utf8proc_ssize_t count =
        utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)bytes, &composed,
                     UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (count < 0) {
        return status_fail(STATUS_RESOURCE, "cannot compose a text of %zu bytes: %s", bytes,
                           utf8proc_errmsg(count));
    }
    const enum status status = byte_list_add(out, composed, (size_t)count);
    free(composed);
    return status;
}

enum status compose(struct byte_list *out, const char *text, size_t bytes)
{
    size_t done = 0;
    for (size_t at = 0; at < bytes;) {
        const int length = utf8_length(text + at, bytes - at);
        if ((unsigned char)text[at] >= 0xd7 && compose_is_new(utf8_character(text + at, length))) {
            TRY(compose_run(out, text + done, at - done));
            TRY(byte_list_add(out, text + at, (size_t)length));
            done = at + (size_t)length;
        }
        at += (size_t)length;
    }
    return compose_run(out, text + done, bytes - done);
}
