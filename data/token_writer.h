/* token_writer: writes the token file that token_store.h describes. Streaming: bounded memory,
 * written beside the output and renamed into place at close.
 */
#ifndef DATA_TOKEN_WRITER_H
#define DATA_TOKEN_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/base/status.h"

struct token_writer;
struct token_writer_options {
    int64_t vocab_size, eos_id;
    const char *tokenizer, *tokenizer_hash;
    const char *tokenizer_file;  /* [tokenizer_file_bytes] borrowed until the writer is closed */
    size_t tokenizer_file_bytes; /* 0: none */
    bool loss_mask;              /* store one */
};
enum status token_writer_open(struct token_writer **writer, const char *path,
                              const struct token_writer_options *options)
    __attribute__((warn_unused_result));
/* Appends one document, exactly these ids (checked against vocab_size: STATUS_DATA); mask NULL =
 * all 1. */
enum status token_writer_add(struct token_writer *writer, const uint32_t *ids, const uint8_t *mask,
                             int64_t count) __attribute__((warn_unused_result));
/* Publishes the file; frees the writer even on error. */
enum status token_writer_close(struct token_writer *writer) __attribute__((warn_unused_result));
void token_writer_abandon(struct token_writer *writer); /* removes the temporary file */

#endif
