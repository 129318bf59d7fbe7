/* fim_tokens: the three tokens of fill-in-the-middle that data.fim names, as ids. */
#ifndef TRAINER_FIM_TOKENS_H
#define TRAINER_FIM_TOKENS_H

#include "data/fim.h"
#include "data/tokenizer.h"
#include "trainer/config/config.h"

/* Whether the tokenizer is needed: a token is given by its text, or not at all. */
bool fim_tokens_are_texts(const struct config *config);
/* Local. Sets prefix, middle and suffix: the ids that data.fim.* are; else the tokens of that text;
 * where null, of DeepSeek's, or of StarCoder's names. `tokenizer` may be NULL when all are ids;
 * `where` stands in messages. Errors: STATUS_USAGE: no such token, or an id that the model's
 * vocabulary has not. */
enum status fim_tokens_find(struct fim *fim, const struct config *config,
                            const struct tokenizer *tokenizer, const char *where)
    __attribute__((warn_unused_result));

#endif
