#include "data/tokenizer.h"

#include <stdbool.h>
#include <string.h>

bool tokenizer_is_bytes(const char *name, int64_t vocab)
{
    return strcmp(name, "bytes") == 0 && vocab >= TOKENIZER_BYTES_VOCAB;
}

int64_t tokenizer_bytes_encode(int32_t *ids, const char *text, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i++) {
        ids[i] = (unsigned char)text[i];
    }
    return bytes;
}

void tokenizer_bytes_decode(char *text, const int32_t *ids, int64_t count)
{
    static const char eos[] = "<eos>";
    for (int64_t i = 0; i < count; i++) {
        if (ids[i] == TOKENIZER_BYTES_EOS) {
            memcpy(text, eos, sizeof eos - 1);
            text += sizeof eos - 1;
        } else {
            const int32_t c = ids[i];
            const bool hidden = (c < 32 && c != '\n' && c != '\t') || c == 127 || c > 255;
            *text++ = hidden ? '.' : (char)c;
        }
    }
    *text = '\0';
}
