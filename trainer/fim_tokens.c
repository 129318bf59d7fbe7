#include "trainer/fim_tokens.h"

#include <stdlib.h>
#include <string.h>

enum { NAMES = 2 };

/* Names that tokenizers give them: DeepSeek's (full-width bars, lower blocks), StarCoder's. */
static const char *const prefix_names[NAMES] = {"<\xef\xbd\x9c"
                                                "fim\xe2\x96\x81"
                                                "begin\xef\xbd\x9c>",
                                                "<fim_prefix>"};
static const char *const suffix_names[NAMES] = {"<\xef\xbd\x9c"
                                                "fim\xe2\x96\x81"
                                                "hole\xef\xbd\x9c>",
                                                "<fim_suffix>"};
static const char *const middle_names[NAMES] = {"<\xef\xbd\x9c"
                                                "fim\xe2\x96\x81"
                                                "end\xef\xbd\x9c>",
                                                "<fim_middle>"};

static bool is_id(const char *text)
{
    return text != NULL && text[0] != '\0' && strspn(text, "0123456789") == strlen(text) &&
           strlen(text) < 10;
}

bool fim_tokens_are_texts(const struct config *config)
{
    return !is_id(config->data.fim.prefix) || !is_id(config->data.fim.middle) ||
           !is_id(config->data.fim.suffix);
}

static enum status find(int32_t *id, const char *key, const char *said,
                        const char *const names[NAMES], const struct config *config,
                        const struct tokenizer *tokenizer, const char *where)
{
    int64_t found = is_id(said) ? atoll(said) : -1;
    if (!is_id(said) && tokenizer != NULL) {
        found = said != NULL ? tokenizer_find(tokenizer, said) : -1;
        for (int i = 0; i < NAMES && said == NULL && found < 0; i++) {
            found = tokenizer_find(tokenizer, names[i]);
        }
    }
    if (found < 0) {
        return status_fail(STATUS_USAGE,
                           "data.fim.%s: %s: its tokenizer has no token %s%s: give an id below "
                           "model.vocab_size that no text uses, or the text of a token",
                           key, where, said != NULL ? said : names[0],
                           said == NULL ? " (nor StarCoder's)" : "");
    }
    if (found >= config->model.vocab_size) {
        return status_fail(STATUS_USAGE,
                           "data.fim.%s: id %lld is not below model.vocab_size %lld: raise it", key,
                           (long long)found, (long long)config->model.vocab_size);
    }
    *id = (int32_t)found;
    return STATUS_OK;
}

enum status fim_tokens_find(struct fim *fim, const struct config *config,
                            const struct tokenizer *tokenizer, const char *where)
{
    TRY(find(&fim->prefix, "prefix", config->data.fim.prefix, prefix_names, config, tokenizer,
             where));
    TRY(find(&fim->middle, "middle", config->data.fim.middle, middle_names, config, tokenizer,
             where));
    TRY(find(&fim->suffix, "suffix", config->data.fim.suffix, suffix_names, config, tokenizer,
             where));
    return fim->prefix != fim->middle && fim->middle != fim->suffix && fim->prefix != fim->suffix
               ? STATUS_OK
               : status_fail(STATUS_USAGE,
                             "data.fim: prefix %d, middle %d and suffix %d must be three tokens",
                             fim->prefix, fim->middle, fim->suffix);
}
