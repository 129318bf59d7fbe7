/* libFuzzer target: any bytes as a line of a .jsonl. */
#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "data/document_line.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct document_line line; /* one serves for line after line */
    if (document_parse(&line, (const char *)data, bytes) != STATUS_OK) {
        return 0;
    }
    volatile unsigned sum = 0; /* everything in it can be read */
    for (size_t i = 0; line.kind == DOCUMENT_TEXT && i < line.text_bytes; i++) {
        sum += (unsigned char)line.text[i];
    }
    if (line.kind == DOCUMENT_TOKENS) {
        assert(line.mask.count == 0 || line.mask.count == line.ids.count);
        for (size_t i = 0; i < line.ids.count; i++) {
            assert(line.mask.count == 0 || line.mask.data[i] == 0 || line.mask.data[i] == 1);
            sum += line.ids.data[i];
        }
    }
    for (int64_t i = 0; line.kind == DOCUMENT_MESSAGES && i < line.message_count; i++) {
        sum += (unsigned)strlen(line.messages[i].text);
        assert(strlen(line.messages[i].text) <= line.messages[i].bytes);
    }
    return 0;
}
