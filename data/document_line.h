/* document_line: one line of a .jsonl, from memory: {"text"}, {"tokens", "loss_mask"} or
 * {"messages"}.
 */
#ifndef DATA_DOCUMENT_LINE_H
#define DATA_DOCUMENT_LINE_H

#include <stddef.h>
#include <stdint.h>

#include "data/chat.h"
#include "data/lists.h"

enum document_kind { DOCUMENT_TEXT, DOCUMENT_TOKENS, DOCUMENT_MESSAGES };

/* A zeroed one is empty; one serves for line after line. */
struct document_line {
    enum document_kind kind;
    const char *text; /* [text_bytes] DOCUMENT_TEXT; in `json` */
    size_t text_bytes;
    struct id_list ids;            /* DOCUMENT_TOKENS */
    struct byte_list mask;         /* DOCUMENT_TOKENS: one per id, 0 or 1; empty: none given */
    struct chat_message *messages; /* [message_count] DOCUMENT_MESSAGES; owned, texts in `json` */
    int64_t message_count, message_room;
    void *json; /* owned: what was parsed */
};

/* Local. Of several of the keys "tokens" wins, then "text". Any bytes may stand in `data`.
 * Errors: STATUS_DATA: what is wrong, without a place; STATUS_RESOURCE. What was there before is
 * gone either way. */
enum status document_parse(struct document_line *line, const char *data, size_t bytes)
    __attribute__((warn_unused_result));
void document_line_free(struct document_line *line); /* accepts a zeroed one; may be called twice */

#endif
