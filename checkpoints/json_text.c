#include "checkpoints/json_text.h"

#include <stdlib.h>

bool json_text_is_shallow(const char *text, size_t bytes)
{
    int level = 0;
    bool quoted = false;
    for (size_t i = 0; i < bytes; i++) {
        const char c = text[i];
        if (quoted) {
            i += c == '\\';
            quoted = c != '"';
        } else if (c == '"') {
            quoted = true;
        } else if (c == '[' || c == '{') {
            if (++level > JSON_TEXT_LEVELS) {
                return false;
            }
        } else if (c == ']' || c == '}') {
            level--;
        }
    }
    return true;
}

enum status json_text_parse(json_t **json, const char *path, const char *text, size_t bytes)
{
    json_error_t problem = {0};
    *json = NULL;
    if (!json_text_is_shallow(text, bytes)) {
        return status_fail(STATUS_DATA, "%s: its JSON is nested deeper than %d levels", path,
                           JSON_TEXT_LEVELS);
    }
    *json = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &problem);
    return *json != NULL
               ? STATUS_OK
               : status_fail(STATUS_DATA, "%s: line %d: %s", path, problem.line, problem.text);
}

enum status json_text_read(json_t **json, const char *path, size_t limit)
{
    char *text = NULL;
    size_t bytes = 0;
    *json = NULL;
    TRY(io_check_regular(path));
    TRY(io_read_file(path, &text, &bytes, limit));
    const enum status status = json_text_parse(json, path, text, bytes);
    free(text);
    return status;
}
