/* sample_text: how a text goes on, as the model has it now. */
#ifndef TRAINER_SAMPLE_TEXT_H
#define TRAINER_SAMPLE_TEXT_H

#include "data/tokenizer.h"
#include "trainer/model/model.h"

/* Collective over the world. sample.prompt and sample.tokens tokens more by the config's sample.*
 * keys; on rank 0 added to *text, which the caller frees. Errors: STATUS_USAGE for an empty prompt
 * where no document can begin; STATUS_RESOURCE; those of the tokenizer, of rank 0 alone. */
enum status sample_text(struct model *model, struct tokenizer *tokenizer, struct byte_list *text)
    __attribute__((warn_unused_result));

/* Local. Appends it to the file `path`. Errors: STATUS_IO. */
enum status sample_append(const char *path, int64_t step, const char *text)
    __attribute__((warn_unused_result));

#endif
