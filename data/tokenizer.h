/* tokenizer: text to token ids and back.
 *
 * Kinds: `bytes` (every byte is a token, 256 ends a document) and byte-level BPE as Hugging Face's
 * tokenizer.json describes it (added tokens; normalizer NFC; pre-tokenizers Split, Digits,
 * ByteLevel), whose ids are those of the `tokenizers` library without add_special_tokens, and
 * SentencePiece .model files, whose ids are that library's. What a file asks for beyond that is
 * refused by name.
 */
#ifndef DATA_TOKENIZER_H
#define DATA_TOKENIZER_H

#include <stdbool.h>
#include <stdint.h>

#include "data/bpe.h"
#include "data/phrases.h"
#include "data/sentencepiece.h"
#include "data/splitter.h"

enum { TOKENIZER_BYTES_EOS = 256, TOKENIZER_BYTES_VOCAB = 257, TOKENIZER_HASH_BYTES = 17 };
enum tokenizer_kind { TOKENIZER_BYTES, TOKENIZER_BPE, TOKENIZER_SENTENCEPIECE };

/* Read-only once open, shared by threads. */
struct tokenizer {
    enum tokenizer_kind kind;
    int64_t vocab_size;              /* the largest id + 1 */
    int64_t bos_id, eos_id;          /* -1: not known */
    char hash[TOKENIZER_HASH_BYTES]; /* of the file; "bytes" without one */
    struct byte_list file;           /* what it was read from; empty without one */
    struct token_table tokens;
    struct phrases raw, normalized; /* added tokens, found before and after the normalizer */
    bool nfc;
    struct splitter *splitter; /* owned */
    struct bpe bpe;
    struct piece_model *sentencepiece; /* owned */
};

/* Local. `name`: "bytes", or the path of a .model or a tokenizer.json (told apart by what is in
 * them); beside the latter bos and eos are those of a
 * tokenizer_config.json beside it, else added tokens with the usual names. Errors: STATUS_IO;
 * STATUS_DATA naming the file and what in it; STATUS_RESOURCE. Close it either way. */
enum status tokenizer_open(struct tokenizer *tokenizer, const char *name)
    __attribute__((warn_unused_result));
/* Local. The same from the file's contents; `name` stands in messages. */
enum status tokenizer_read(struct tokenizer *tokenizer, const char *name, const char *data,
                           size_t bytes) __attribute__((warn_unused_result));
void tokenizer_close(struct tokenizer *tokenizer); /* accepts a zeroed one; may be called twice */

/* As a token file's attribute `tokenizer`: "bytes", "bpe", "sentencepiece". */
const char *tokenizer_name(const struct tokenizer *tokenizer);
/* The id of the token with this text, -1: none. */
int64_t tokenizer_find(const struct tokenizer *tokenizer, const char *text);

/* What one thread encodes with. */
struct encoder {
    const struct tokenizer *tokenizer; /* borrowed */
    struct splitter_scratch *split;    /* owned */
    struct bpe_scratch bpe;
    struct byte_list composed;
    /* of the call under way */
    struct id_list *out; /* NULL: only words are asked for */
    enum status (*use)(void *context, const char *word, size_t bytes);
    void *context;
};

/* Local. Errors: STATUS_RESOURCE. Close it either way. */
enum status encoder_open(struct encoder *encoder, const struct tokenizer *tokenizer)
    __attribute__((warn_unused_result));
/* Local. Appends the ids of a text: any bytes; those that are no UTF-8 are encoded as they are,
 * byte by byte where the vocabulary knows no more. Added tokens in it become their ids. Errors:
 * STATUS_RESOURCE; STATUS_DATA where a pattern gives up. */
enum status encoder_run(struct encoder *encoder, const char *text, size_t bytes,
                        struct id_list *out) __attribute__((warn_unused_result));
/* Local. Calls `use` with the words of a text that pairs are merged in; added tokens in it are
 * none. For kind TOKENIZER_BPE. Errors: of `use`; STATUS_DATA where a pattern gives up. */
enum status encoder_words(struct encoder *encoder, const char *text, size_t bytes,
                          enum status (*use)(void *context, const char *word, size_t bytes),
                          void *context) __attribute__((warn_unused_result));
void encoder_close(struct encoder *encoder); /* accepts a zeroed one; may be called twice */

/* Local. Appends the bytes that the ids stand for; of `bytes` end-of-document is "<eos>". Errors:
 * STATUS_DATA for an id that no token has; STATUS_RESOURCE. */
enum status tokenizer_decode(const struct tokenizer *tokenizer, const uint32_t *ids, int64_t count,
                             struct byte_list *out) __attribute__((warn_unused_result));
/* Local. The same for a terminal, whatever the ids: control bytes but newline and tab, and ids that
 * no token has, become dots; a NUL follows. */
enum status tokenizer_show(const struct tokenizer *tokenizer, const int32_t *ids, int64_t count,
                           struct byte_list *out) __attribute__((warn_unused_result));

#endif
