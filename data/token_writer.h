/* token_writer: writes the token file that token_store.h describes. Streaming, in bounded memory:
 * tokens go where they will lie in the file OUT.tmp, ends of documents and loss mask into files
 * beside it until their number is known; at close OUT.tmp becomes an HDF5 file and gets its name.
 * Where one process writes, a thread moves tokens to the disk past the page cache while more come:
 * what an operation returns may be the error of an earlier one.
 *
 * Blocks can be written by several processes, each at its own place, and a writer can go on where
 * an earlier one stood.
 */
#ifndef DATA_TOKEN_WRITER_H
#define DATA_TOKEN_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/base/status.h"

/* What lies beside an output while it is made, all of it: the output itself, the files of a
 * token_writer, and those of prepare (prepare_journal.h). */
enum { TOKEN_WRITER_NAMES = 9 };
extern const char *const token_writer_suffix[TOKEN_WRITER_NAMES];

struct token_writer;
struct token_writer_options {
    int64_t vocab_size, eos_id;
    const char *tokenizer, *tokenizer_hash;
    const char *tokenizer_file;  /* [tokenizer_file_bytes] borrowed until the writer is closed */
    size_t tokenizer_file_bytes; /* 0: none */
    bool loss_mask;              /* store one, though no document may have one */
    bool shared;        /* several processes write; else each block follows the one before */
    bool keep;          /* the files are there: another process, or an earlier one, made them */
    size_t piece_bytes; /* of a write past the page cache; 0: 16 MiB; else a multiple of
                           IO_ALIGNMENT, for tests */
};

struct token_position {
    int64_t tokens, documents;
};

/* Documents one after another. */
struct token_block {
    const void *tokens;     /* [count] of token_writer_width bytes each */
    const uint8_t *mask;    /* [count]; NULL: all 1 */
    const int64_t *lengths; /* [documents], sum to count */
    int64_t count, documents;
};

/* Makes the folder that holds `path`, if it must. */
enum status token_writer_folder(const char *path) __attribute__((warn_unused_result));
/* Bytes of a token in the file: 2 or 4. */
int token_writer_width(int64_t vocab_size);

/* Errors: STATUS_IO, STATUS_RESOURCE; *writer is to be closed, left or abandoned either way. */
enum status token_writer_open(struct token_writer **writer, const char *path,
                              const struct token_writer_options *options)
    __attribute__((warn_unused_result));
/* Appends one document, exactly these ids (checked against vocab_size: STATUS_DATA); mask NULL =
 * all 1. */
enum status token_writer_add(struct token_writer *writer, const uint32_t *ids, const uint8_t *mask,
                             int64_t count) __attribute__((warn_unused_result));

/* Writes a block at its place; its ids were checked by the caller. */
enum status token_writer_put(struct token_writer *writer, struct token_position at,
                             const struct token_block *block) __attribute__((warn_unused_result));
/* Forgets what lies behind `end`, and goes on from there; only one process may. STATUS_DATA where
 * there is less than that. */
enum status token_writer_cut(struct token_writer *writer, struct token_position end)
    __attribute__((warn_unused_result));
/* How much there is by now, and whether any document has a mask: for token_writer_close. */
void token_writer_reach(struct token_writer *writer, struct token_position end, bool masked);
/* Waits for what is on its way: before other files are written that tests count with these. */
enum status token_writer_settle(struct token_writer *writer) __attribute__((warn_unused_result));
enum status token_writer_sync(struct token_writer *writer) __attribute__((warn_unused_result));

/* Makes the output and gives it its name. On error what was written stays, and the writer too. */
enum status token_writer_publish(struct token_writer *writer) __attribute__((warn_unused_result));
/* The same, and frees the writer; on error as abandon. */
enum status token_writer_close(struct token_writer *writer) __attribute__((warn_unused_result));
/* Both free the writer, and accept NULL: */
void token_writer_abandon(struct token_writer *writer); /* removes the files beside the output */
void token_writer_leave(struct token_writer *writer);   /* keeps them */

#endif
