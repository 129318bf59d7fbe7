/* sentencepiece: a .model file through Google's library, which is C++; this is all of it that is
 * used.
 *
 * sentencepiece.cpp is the bridge; a build without the library has absent/sentencepiece_none.c in
 * its place, where opening says so.
 */
#ifndef DATA_SENTENCEPIECE_H
#define DATA_SENTENCEPIECE_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct piece_model; /* read-only once open, shared by threads */

/* The model in a file's contents; NULL with the reason in why[why_bytes]. */
struct piece_model *sentencepiece_open(const char *data, size_t bytes, char *why, size_t why_bytes);
void sentencepiece_close(struct piece_model *model); /* accepts NULL */

int sentencepiece_size(const struct piece_model *model); /* ids are below it */
int sentencepiece_bos(const struct piece_model *model);  /* -1: none */
int sentencepiece_eos(const struct piece_model *model);
/* The piece of an id, as the model spells it, valid until close. */
const char *sentencepiece_piece(const struct piece_model *model, int id, size_t *bytes);

/* Hands every id of a text to `add`, which returns 0 to go on. 0: done; else what `add` returned,
 * or -1 when the library failed. */
int sentencepiece_encode(const struct piece_model *model, const char *text, size_t bytes,
                         int (*add)(void *context, int id), void *context);
/* Hands the text of ids to `add` at once; the same results. */
int sentencepiece_decode(const struct piece_model *model, const int *ids, size_t count,
                         int (*add)(void *context, const char *text, size_t bytes), void *context);

#ifdef __cplusplus
}
#endif

#endif
