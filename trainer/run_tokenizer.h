/* run_tokenizer: the tokenizer that belongs to a model's text.
 *
 * A token file made by a tokenizer file carries a copy of it; training puts that beside the run's
 * config as tokenizer.json or tokenizer.model, with the names of bos and eos in
 * tokenizer_config.json as Hugging Face has them. A checkpoint says which tokenizer its data came
 * from: "bytes", "none" (ids made elsewhere), or kind and hash, as in "bpe:0123456789abcdef"; a run
 * that goes on with ids made elsewhere keeps what it said.
 */
#ifndef TRAINER_RUN_TOKENIZER_H
#define TRAINER_RUN_TOKENIZER_H

#include "data/token_store.h"
#include "data/tokenizer.h"
#include "trainer/session.h"
#include "trainer/state.h"

/* What a checkpoint trained on this token file says. */
void run_tokenizer_describe(const struct token_store *store, char name[STATE_TOKENIZER_BYTES]);
/* Local. The tokenizer of a token file's text. Errors: STATUS_USAGE when it has none, or `vocab`,
 * the model's, is too small for it; STATUS_DATA. Close it either way. */
enum status run_tokenizer_of_data(struct tokenizer *tokenizer, const struct token_store *store,
                                  int64_t vocab) __attribute__((warn_unused_result));
/* Local. Writes that copy and tokenizer_config.json into run.dir where the token file carries
 * a tokenizer file. Errors: STATUS_IO. */
enum status run_tokenizer_keep(const struct session *session, const struct token_store *store)
    __attribute__((warn_unused_result));

/* Collective. The tokenizer of what was trained in `place`, a run directory or a checkpoint in one:
 * `file` ("bytes", or a path) where not NULL, else what the checkpoint names. Errors: STATUS_USAGE
 * when there is none for this model, `instead` says what to give in place of text, or `file` is
 * another than the checkpoint names; those of tokenizer_open. Close it either way. */
enum status run_tokenizer_open(struct tokenizer *tokenizer, struct session *session,
                               const char *place, const char *file, const char *instead)
    __attribute__((warn_unused_result));

/* Collective. That a token file has ids of the tokenizer that the checkpoint in `place` was trained
 * with, as far as both say. Errors: STATUS_USAGE. */
enum status run_tokenizer_match(struct session *session, const char *place,
                                const struct token_store *store)
    __attribute__((warn_unused_result));

/* Collective. What a run that goes on from the weights in `place` says: `name`, that of its data (a
 * token file's, run_tokenizer_describe), or where that says nothing what was said there. */
enum status run_tokenizer_carry(struct session *session, const char *place,
                                char name[STATE_TOKENIZER_BYTES])
    __attribute__((warn_unused_result));

#endif
