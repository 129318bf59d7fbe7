/* token_store: files of token ids, read through io as the loader wants them: the token file (.h5)
 * that prepare writes, and those of Megatron-LM (.bin with its .idx) and llm.c (.bin), told apart
 * by what is in them (token_formats.h).
 *
 * The token file:
 * Dataset `tokens` (uint16 when vocab_size <= 65536, else uint32; contiguous), `document_offsets`
 * (int64, documents + 1), optional `loss_mask` (uint8, one per token); attributes of the root
 * group: format_version (1), vocab_size, eos_id (-1: none), tokenizer ("bytes", "none", "bpe",
 * "sentencepiece"),
 * tokenizer_hash (string). A file made with a tokenizer file carries that in dataset
 * `tokenizer_file` (uint8), so that nothing else is needed to turn text into its ids and back.
 */
#ifndef DATA_TOKEN_STORE_H
#define DATA_TOKEN_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/block_file.h"
#include "kernels/base/status.h"

enum { TOKEN_FORMAT_VERSION = 1 };

struct token_store {
    char *path;     /* owned */
    int64_t tokens; /* how many */
    int64_t documents;
    const char *format; /* "token file", "Megatron", "llm.c" */
    bool vocab_known;   /* the file says its vocab_size; else that is its largest id + 1 */
    int64_t vocab_size;
    int64_t largest_id; /* what a token may be at most */
    int64_t eos_id;     /* -1: none; llm.c: what its documents begin with */
    int width;          /* bytes per token: 1, 2, 4 or 8 */
    char tokenizer[64]; /* "unknown" where the format doesn't say */
    char tokenizer_hash[64];
    const void *token_data;   /* [tokens] borrowed: of a store in memory; NULL: of a file */
    const uint8_t *loss_mask; /* [tokens] borrowed: of one in memory, or NULL */
    struct block_file *file;  /* owned: the file with the tokens */
    uint64_t tokens_hash;     /* of a file: of all its tokens */
    uint64_t mask_hash;       /* of all its mask, where it was looked at when it was opened */
    bool mask_looked_at;
    int64_t tokens_at, mask_at;  /* bytes into it; mask_at 0: there is no loss_mask */
    char *tokenizer_file;        /* [tokenizer_file_bytes] owned */
    size_t tokenizer_file_bytes; /* 0: none */
    int64_t *document_offsets;   /* [documents + 1], owned */
};

/* Local. `path`: the file, either of Megatron's two, or their name without .bin and .idx. Errors
 * (STATUS_DATA unless said): missing or unreadable (STATUS_IO), empty, truncated, foreign, a
 * dataset outside the file, filters; a token id >= vocab_size is found here by one pass over the
 * file. The message names the file. */
enum status token_store_open(struct token_store *store, const char *path)
    __attribute__((warn_unused_result));
void token_store_close(struct token_store *store); /* accepts a zeroed one */
/* i < tokens. Of a file: one thread at a time. What cannot be read, or is no id of this file any
 * more, is 0, and told by token_store_status. */
int64_t token_store_get(const struct token_store *store, int64_t i);
bool token_store_counts(const struct token_store *store, int64_t i); /* as a label: loss_mask */
/* Both of tokens i .. i+count-1, which the store has: ids[count] and counts[count], 0 or 1. */
void token_store_run(const struct token_store *store, int64_t i, int64_t count, int32_t *ids,
                     uint8_t *counts);
/* Whether all that was taken of the file so far could be read, and was an id of its vocabulary: a
 * file that others rewrite under a run with other valid ids is noticed when the run is resumed
 * (token_store_contents). Errors, of the first that was not: STATUS_IO, STATUS_DATA; the message
 * names the file. */
enum status token_store_status(const struct token_store *store) __attribute__((warn_unused_result));
/* Bytes of the file's tokens, `width` each, or of its loss_mask, as token_store_get takes them. */
enum token_part { TOKEN_PART_IDS, TOKEN_PART_MASK };
void token_store_bytes(const struct token_store *store, enum token_part part, int64_t offset,
                       void *to, size_t bytes);
/* Local. Hash of all that the file gives: every token, which the pass of token_store_open has read,
 * the loss_mask, which is read here, documents and sizes; whatever its name, age and layout. Never
 * 0. Errors: those of token_store_status; STATUS_RESOURCE. */
enum status token_store_contents(const struct token_store *store, uint64_t *contents)
    __attribute__((warn_unused_result));
/* Index of the document that holds token i. */
int64_t token_store_document(const struct token_store *store, int64_t i);
/* That both may feed one model: their ids are of one tokenizer, as far as the files know. Error:
 * STATUS_DATA naming both files and tokenizers. */
enum status token_store_match(const struct token_store *a, const struct token_store *b)
    __attribute__((warn_unused_result));

#endif
