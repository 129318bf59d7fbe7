/* token_formats: readers of the files that token_store opens, and parts of that. Private to data/.
 *
 * Each fills a store whose path is set: tokens, width, tokens_at, documents, document_offsets, and
 * what the format knows of its vocabulary; token_store then looks at every token. Errors of
 * all: STATUS_DATA naming the file (truncated, of wrong sizes, foreign), STATUS_IO,
 * STATUS_RESOURCE.
 *
 * Megatron-LM (core/datasets/indexed_dataset.py): X.bin is the tokens; X.idx: "MMIDIDX\0\0",
 * version uint64 1, type of the tokens uint8 (1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8
 * uint16), number of sequences uint64, of document indices uint64, then int32 lengths, int64 byte
 * offsets of the sequences, int64 first sequence of each document and the number of sequences.
 *
 * llm.c (dev/data/data_common.py): 256 int32: magic, version, number of tokens; then the tokens:
 * uint16 (20240520, version 1) or uint32 (20240801, version 7). Documents begin with the id that
 * its scripts put there, 50256 (GPT-2's <|endoftext|>) or 128000 (Llama 3's <|begin_of_text|>).
 */
#ifndef DATA_TOKEN_FORMATS_H
#define DATA_TOKEN_FORMATS_H

#include "data/token_store.h"

#define TOKEN_CHECKED __attribute__((warn_unused_result))

/* The token file; store->file is it. */
enum status token_h5_open(struct token_store *store) TOKEN_CHECKED;

enum { TOKEN_HEAD_BYTES = 16 }; /* that tell the formats apart */

bool token_megatron_is_index(const char *head, int64_t bytes);
/* Both files by name; store->file is closed before and is `tokens` then. */
enum status token_megatron_open(struct token_store *store, const char *index,
                                const char *tokens) TOKEN_CHECKED;

bool token_llmc_is(const char *head, int64_t bytes);
/* store->file is it. */
enum status token_llmc_open(struct token_store *store) TOKEN_CHECKED;

/* --- opening, in parts; token_share.h divides the second between ranks --- */

/* All of token_store_open but the look at every token; close it either way. */
enum status token_store_begin(struct token_store *store, const char *path) TOKEN_CHECKED;
/* Pieces of TOKEN_PIECE bytes of the tokens, or of the mask (0: there is none in the file). */
enum { TOKEN_PIECE = 1 << 20 };
int64_t token_store_pieces(const struct token_store *store, enum token_part part);
/* Reads one of them into scratch[TOKEN_PIECE]: its hash; *most grows to its largest id. */
enum status token_store_look(const struct token_store *store, enum token_part part, int64_t piece,
                             char *scratch, uint64_t *hash, uint64_t *most) TOKEN_CHECKED;
/* The hash of a part, of those of its pieces. */
uint64_t token_store_chain(const uint64_t *hashes, int64_t count);
/* Holds the largest id of all against what the file says. Errors: STATUS_DATA. */
enum status token_store_conclude(struct token_store *store, uint64_t most) TOKEN_CHECKED;

/* Token i as it stands in the file; 0 when it cannot be read. */
uint64_t token_store_id(const struct token_store *store, int64_t i);
/* The room for `documents` + 1 offsets. Errors: STATUS_RESOURCE. */
enum status token_store_reserve(struct token_store *store, int64_t documents) TOKEN_CHECKED;

#endif
