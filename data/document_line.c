#include "data/document_line.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static enum status parse_tokens(struct document_line *line, const json_t *tokens,
                                const json_t *mask)
{
    const size_t count = json_array_size(tokens);
    const bool masked = mask != NULL;
    if (!json_is_array(tokens) || (masked && json_array_size(mask) != count)) {
        return status_fail(STATUS_DATA,
                           "\"tokens\" must be a list, \"loss_mask\" one of the same length");
    }
    line->kind = DOCUMENT_TOKENS;
    TRY(id_list_reserve(&line->ids, count));
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_array_get(tokens, i);
        const json_int_t value = json_integer_value(id);
        if (!json_is_integer(id) || value < 0 || value > UINT32_MAX) {
            return status_fail(STATUS_DATA, "token %zu is not a whole number from 0", i);
        }
        line->ids.data[line->ids.count++] = (uint32_t)value;
    }
    for (size_t i = 0; masked && i < count; i++) {
        const json_t *on = json_array_get(mask, i);
        if (!json_is_integer(on) || json_integer_value(on) < 0 || json_integer_value(on) > 1) {
            return status_fail(STATUS_DATA, "loss_mask %zu is neither 0 nor 1", i);
        }
        const char value = (char)json_integer_value(on);
        TRY(byte_list_add(&line->mask, &value, 1));
    }
    return STATUS_OK;
}

static enum status parse_message(struct chat_message *message, const json_t *json, size_t i)
{
    const json_t *role = json_object_get(json, "role"), *content = json_object_get(json, "content"),
                 *calls = json_object_get(json, "tool_calls");
    if (!json_is_string(role) || !chat_role_find(&message->role, json_string_value(role))) {
        return status_fail(
            STATUS_DATA,
            "message %zu: \"role\" must be \"system\", \"user\" or \"assistant\"%s%.40s", i,
            json_is_string(role) ? ", not " : "",
            json_is_string(role) ? json_string_value(role) : "");
    }
    if ((calls != NULL && !json_is_null(calls)) || !json_is_string(content)) {
        return status_fail(STATUS_DATA, "message %zu: needs \"content\", a text%s", i,
                           calls != NULL ? "; \"tool_calls\" are not built in this version" : "");
    }
    message->text = json_string_value(content);
    message->bytes = json_string_length(content);
    return STATUS_OK;
}

static enum status parse_messages(struct document_line *line, const json_t *messages)
{
    const int64_t count = (int64_t)json_array_size(messages);
    if (count == 0) {
        return status_fail(STATUS_DATA, "\"messages\" must be a list of {\"role\", \"content\"}");
    }
    if (count > line->message_room) {
        struct chat_message *grown = realloc(line->messages, (size_t)count * sizeof *grown);
        if (grown == NULL) {
            return status_fail(STATUS_RESOURCE, "out of memory for %lld messages",
                               (long long)count);
        }
        line->messages = grown;
        line->message_room = count;
    }
    line->kind = DOCUMENT_MESSAGES;
    line->message_count = count;
    for (int64_t i = 0; i < count; i++) {
        TRY(parse_message(&line->messages[i], json_array_get(messages, (size_t)i), (size_t)i));
    }
    return STATUS_OK;
}

/* Keeps what it has room for. */
static void forget(struct document_line *line)
{
    json_decref(line->json);
    line->json = NULL;
    line->text = NULL;
    line->text_bytes = line->ids.count = line->mask.count = 0;
    line->message_count = 0;
}

/* A byte order mark before it is none of the line; a whole number beyond 64 bits, which none of
 * ours is, is read as a real one. */
static json_t *load(const char *data, size_t bytes, json_error_t *problem)
{
    static const char mark[3] = "\xef\xbb\xbf";
    const size_t flags = JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL,
                 skip =
                     bytes >= sizeof mark && memcmp(data, mark, sizeof mark) == 0 ? sizeof mark : 0;
    json_t *json = json_loadb(data + skip, bytes - skip, flags, problem);
    if (json == NULL && json_error_code(problem) == json_error_numeric_overflow) {
        json = json_loadb(data + skip, bytes - skip, flags | JSON_DECODE_INT_AS_REAL, problem);
    }
    return json;
}

enum status document_parse(struct document_line *line, const char *data, size_t bytes)
{
    json_error_t problem;
    forget(line);
    json_t *json = load(data, bytes, &problem);
    line->json = json;
    if (json == NULL) {
        return status_fail(STATUS_DATA, "not JSON: %s", problem.text);
    }
    const json_t *text = json_object_get(json, "text"), *tokens = json_object_get(json, "tokens"),
                 *messages = json_object_get(json, "messages");
    if (tokens != NULL) {
        return parse_tokens(line, tokens, json_object_get(json, "loss_mask"));
    }
    if (json_is_string(text)) {
        line->kind = DOCUMENT_TEXT;
        line->text = json_string_value(text);
        line->text_bytes = json_string_length(text);
        return STATUS_OK;
    }
    return messages != NULL
               ? parse_messages(line, messages)
               : status_fail(STATUS_DATA, "needs \"text\" or \"tokens\", or \"messages\"");
}

void document_line_free(struct document_line *line)
{
    forget(line);
    id_list_free(&line->ids);
    byte_list_free(&line->mask);
    free(line->messages);
    *line = (struct document_line){0};
}
