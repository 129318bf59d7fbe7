/* json_text: JSON of strangers, looked at before it is parsed: the parser's memory is many times
 * the text's, and grows with every level of nesting.
 */
#ifndef CHECKPOINTS_JSON_TEXT_H
#define CHECKPOINTS_JSON_TEXT_H

#include <jansson.h>

#include "kernels/base/io.h"

enum { JSON_TEXT_LEVELS = 8 };                    /* deepest nesting */
#define JSON_TEXT_CONFIG_BYTES ((size_t)8 << 20)  /* longest config.json */
#define JSON_TEXT_INDEX_BYTES ((size_t)100000000) /* longest index of shards */

/* Whether brackets nest no deeper than JSON_TEXT_LEVELS. */
bool json_text_is_shallow(const char *text, size_t bytes);

/* Parses `text`, which is of the file `path`; *json owned by caller, without duplicate keys.
 * Errors: STATUS_DATA with file, line and reason. */
enum status json_text_parse(json_t **json, const char *path, const char *text,
                            size_t bytes) IO_CHECKED;

/* The same of a regular file of at most `limit` bytes. Errors: STATUS_DATA, STATUS_IO. */
enum status json_text_read(json_t **json, const char *path, size_t limit) IO_CHECKED;

#endif
