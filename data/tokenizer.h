/* tokenizer: text to token ids and back. Built: bytes (every byte is a token). */
#ifndef DATA_TOKENIZER_H
#define DATA_TOKENIZER_H

#include <stdbool.h>
#include <stdint.h>

enum { TOKENIZER_BYTES_EOS = 256, TOKENIZER_BYTES_VOCAB = 257 };

/* Whether tokens of the tokenizer of this name (attribute `tokenizer` of a token file) are text's
 * bytes, and all of them ids of a model with a vocabulary of `vocab`. */
bool tokenizer_is_bytes(const char *name, int64_t vocab);
/* ids[bytes] = the bytes of text; returns how many. */
int64_t tokenizer_bytes_encode(int32_t *ids, const char *text, int64_t bytes);
/* Text of ids; end-of-document becomes <eos>, control bytes and ids that are no byte become dots.
 * `text` has room for 5 bytes an id and a NUL. */
void tokenizer_bytes_decode(char *text, const int32_t *ids, int64_t count);

#endif
