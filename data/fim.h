/* fim: documents with their middle moved to the end, so that a model learns to fill it in
 * (Bavarian et al. 2022; prefix-suffix-middle, document level, before packing: DeepSeek-Coder-V2
 * section 3.1, DeepSeek-V3 section 4.1):
 *
 *     PREFIX prefix SUFFIX suffix MIDDLE middle end-of-document
 *
 * The capitals are the three tokens of struct fim (DeepSeek: fim_begin, fim_hole, fim_end); the two
 * cuts are uniform. An epoch of a source is a stream of its documents in file order, those taken
 * three tokens longer; samples are cut from it, so where a document begins in the stream must be
 * known without an index over billions of them. Hence a rule that counts itself: of every block of
 * FIM_BLOCK documents floor(rate * end) - floor(rate * begin) are taken, which ones by a keyed
 * permutation of the block. What lies before a block is then a closed form, and only one block is
 * looked at. Of D documents exactly floor(rate * D) are taken, whichever the epoch; each is as
 * likely as any other in its block. All is a function of (key, document): no state.
 */
#ifndef DATA_FIM_H
#define DATA_FIM_H

#include "data/token_store.h"

enum { FIM_BLOCK = 64, FIM_TOKENS = 3 };

struct fim {
    int64_t parts; /* the rate in 2^-20; 0: none is taken */
    uint64_t key;  /* of the epoch */
    int32_t prefix, middle, suffix;
};

/* One document as it stands in the stream. */
struct fim_document {
    int64_t index;      /* in the file */
    int64_t begin, end; /* in the stream */
    int64_t from;       /* its first token in the file */
    int64_t body;       /* tokens but the end-of-document */
    int64_t low, high;  /* taken: where the body is cut, 0 <= low <= high <= body; else low -1 */
    uint64_t taken;     /* one bit for each document of its block */
};

/* Where a token of the stream comes from: a token of the file (>= 0), or one of the three. */
enum { FIM_PREFIX = -1, FIM_SUFFIX = -2, FIM_MIDDLE = -3 };

int64_t fim_parts(double rate); /* 0 <= rate <= 1 */
/* Tokens of the stream. */
int64_t fim_stream(const struct fim *fim, const struct token_store *store);
/* The document that holds token `position` of the stream. */
void fim_find(const struct fim *fim, const struct token_store *store, int64_t position,
              struct fim_document *document);
/* The one behind it, which must exist. */
void fim_next(const struct fim *fim, const struct token_store *store,
              struct fim_document *document);
/* Origin of token `offset` of the document, 0 <= offset < end - begin. */
int64_t fim_origin(const struct fim_document *document, int64_t offset);

#endif
