#include "trainer/sample_text.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/sample.h"

/* Ids of the prompt, with room for the tokens to come: *ids owned by the caller. */
static enum status encode_prompt(const struct config *config, struct tokenizer *tokenizer,
                                 int32_t **ids, int64_t *count)
{
    const char *prompt = config->sample.prompt;
    struct encoder encoder;
    struct id_list list = {0};
    enum status status = encoder_open(&encoder, tokenizer);
    status = status == STATUS_OK ? encoder_run(&encoder, prompt, strlen(prompt), &list) : status;
    if (status == STATUS_OK && list.count == 0) { /* as at the start of a document */
        status = tokenizer->eos_id >= 0
                     ? id_list_add(&list, (uint32_t)tokenizer->eos_id)
                     : status_fail(STATUS_USAGE, "sample.prompt: empty, but the tokenizer names no "
                                                 "end of document to stand behind: give a text");
    }
    *ids = calloc(list.count + (size_t)config->sample.tokens, sizeof **ids);
    if (status == STATUS_OK && *ids == NULL) {
        status = status_fail(STATUS_RESOURCE, "out of memory for a sample");
    }
    for (size_t i = 0; status == STATUS_OK && i < list.count; i++) {
        (*ids)[i] = (int32_t)list.data[i];
    }
    *count = (int64_t)list.count;
    id_list_free(&list);
    encoder_close(&encoder);
    return status;
}

enum status sample_text(struct model *model, struct tokenizer *tokenizer, struct byte_list *text)
{
    const struct config *config = model->config;
    const struct sample_options options = {.temperature = config->sample.temperature,
                                           .top_p = 1,
                                           .seed = config->run.seed,
                                           .eos_id = tokenizer->eos_id,
                                           .context = config->train.sequence_length};
    struct sample_sequence sequence = {0};
    enum status status = comm_agree(
        model->mesh->world, encode_prompt(config, tokenizer, &sequence.ids, &sequence.count), NULL);
    if (status == STATUS_OK) {
        status = sample_tokens(model, &sequence, 1, config->sample.tokens, &options);
    }
    if (status == STATUS_OK && model->mesh->world->rank == 0) {
        status = tokenizer_show(tokenizer, sequence.ids, sequence.count, text);
    }
    free(sequence.ids);
    return status;
}

enum status sample_append(const char *path, int64_t step, const char *text)
{
    FILE *out = fopen(path, "a");
    const bool good =
        out != NULL && fprintf(out, "=== step %lld ===\n%s\n", (long long)step, text) >= 0;
    const bool closed = out != NULL && fclose(out) == 0;
    return good && closed
               ? STATUS_OK
               : status_fail(STATUS_IO, "%s: cannot append the sample: %s", path, strerror(errno));
}
