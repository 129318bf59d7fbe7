/* libFuzzer target: any text as a tokenizer.json. What is accepted encodes texts, and decodes the
 * ids. */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void use(const struct tokenizer *tokenizer)
{
    static const char *const texts[] = {
        "", "the int i = 42;\n\n  <s> don't",
        "caf\xc3\xa9 \xe6\xbc\xa2\xe5\xad\x97 e\xcc\x81 \xff\xfe",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    struct encoder encoder;
    struct id_list ids = {0};
    struct byte_list back = {0};
    enum status status = encoder_open(&encoder, tokenizer);
    assert(status == STATUS_OK);
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        ids.count = back.count = 0;
        status = encoder_run(&encoder, texts[i], strlen(texts[i]), &ids);
        if (status == STATUS_OK) { /* a pattern may give up */
            status = tokenizer_decode(tokenizer, ids.data, (int64_t)ids.count, &back);
            assert(status == STATUS_OK);
        }
    }
    for (int64_t id = -1; id <= tokenizer->vocab_size && id < 4096; id++) {
        size_t length = 0;
        const char *text = token_table_text(&tokenizer->tokens, id, &length);
        assert(text == NULL || token_table_find(&tokenizer->tokens, text, length) == id);
    }
    encoder_close(&encoder);
    id_list_free(&ids);
    byte_list_free(&back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct tokenizer tokenizer;
    if (tokenizer_read(&tokenizer, "fuzz", (const char *)data, bytes) == STATUS_OK) {
        use(&tokenizer);
    }
    tokenizer_close(&tokenizer);
    return 0;
}
