/* tokenizer_json: Hugging Face's tokenizer.json, and what tokenizer_config.json says beside it. */
#ifndef DATA_TOKENIZER_JSON_H
#define DATA_TOKENIZER_JSON_H

#include "data/tokenizer.h"

/* Local. Fills what `kind` TOKENIZER_BPE needs. Errors: STATUS_DATA: `name`, what it asks for that
 * is not built or does not fit together; STATUS_RESOURCE. */
enum status tokenizer_json_read(struct tokenizer *tokenizer, const char *name, const char *data,
                                size_t bytes) __attribute__((warn_unused_result));
/* Local. bos_id and eos_id by tokenizer_config.json in the folder of `path`, where that is there
 * and names them. Errors: STATUS_DATA when it is no JSON or names a token that is none. */
enum status tokenizer_json_config(struct tokenizer *tokenizer, const char *path)
    __attribute__((warn_unused_result));

/* The character that stands for each byte in vocabularies: GPT-2's alphabet. */
void tokenizer_json_alphabet(uint32_t character_of[256]);

#endif
