#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/sample.h"
#include "trainer/session.h"
#include "trainer/state.h"

struct request {
    const char *prompt, *tokens;
    int64_t count, seed, top_k;
    double temperature, top_p;
    bool ema, json;
};

/* "1,2,3" into ids; returns how many, or -1 when malformed. */
static int64_t parse_tokens(int32_t *ids, const char *text, int64_t vocab)
{
    int64_t count = 0;
    for (const char *at = text; *at != '\0';) {
        char *end = NULL;
        const long long id = strtoll(at, &end, 10);
        if (end == at || id < 0 || id >= vocab || (*end != ',' && *end != '\0')) {
            return -1;
        }
        ids[count++] = (int32_t)id;
        at = *end == ',' ? end + 1 : end;
    }
    return count;
}

static enum status read_prompt(const struct request *request, int64_t vocab, int32_t *ids,
                               int64_t *count)
{
    if (request->tokens != NULL) {
        *count = parse_tokens(ids, request->tokens, vocab);
        return *count > 0 ? STATUS_OK
                          : status_fail(STATUS_USAGE,
                                        "generate: --tokens '%s': use ids from 0 to %lld with "
                                        "commas between, at least one",
                                        request->tokens, (long long)vocab - 1);
    }
    if (vocab < TOKENIZER_BYTES_VOCAB) {
        return status_fail(
            STATUS_USAGE,
            "generate: --prompt needs the bytes tokenizer (vocabulary of %d, this model has "
            "%lld): use --tokens",
            TOKENIZER_BYTES_VOCAB, (long long)vocab);
    }
    *count = tokenizer_bytes_encode(ids, request->prompt, (int64_t)strlen(request->prompt));
    if (*count == 0) {
        ids[(*count)++] = TOKENIZER_BYTES_EOS;
    }
    return STATUS_OK;
}

static enum status print(const struct request *request, const int32_t *ids, int64_t total)
{
    if (request->tokens != NULL || request->json) {
        printf(request->json ? "{\"tokens\":[" : "");
        for (int64_t i = 0; i < total; i++) {
            printf("%s%d", i > 0 ? "," : "", ids[i]);
        }
        printf(request->json ? "]}\n" : "\n");
        return STATUS_OK;
    }
    char *text = malloc((size_t)total * 5 + 1);
    if (text == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory");
    }
    tokenizer_bytes_decode(text, ids, total);
    printf("%s\n", text);
    free(text);
    return STATUS_OK;
}

static enum status generate(struct session *session, struct model *model, const char *path,
                            const struct request *request, int32_t *ids)
{
    const struct config *config = &session->config;
    int64_t count = 0;
    TRY(read_prompt(request, config->model.vocab_size, ids, &count));
    TRY(comm_agree(&session->world,
                   model_init(model, config, &session->mesh, session->device, 1,
                              config->train.sequence_length, false),
                   NULL));
    TRY(state_load_newest(model, path, request->ema));
    const struct sample_options options = {.temperature = request->temperature,
                                           .top_k = request->top_k,
                                           .top_p = request->top_p,
                                           .seed = (uint64_t)request->seed,
                                           .eos_id =
                                               request->tokens == NULL ? TOKENIZER_BYTES_EOS : -1};
    const int64_t total = count + sample_tokens(model, ids, count, request->count, &options);
    return session_main_rank(session) ? print(request, ids, total) : STATUS_OK;
}

static enum status check(const struct request *request)
{
    if ((request->prompt == NULL) == (request->tokens == NULL)) {
        return status_fail(STATUS_USAGE, "generate: give --prompt TEXT or --tokens 1,2,3");
    }
    if (request->count < 1 || request->temperature < 0 || request->top_k < 0 ||
        request->top_p <= 0 || request->top_p > 1) {
        return status_fail(
            STATUS_USAGE,
            "generate: --count >= 1, --temperature >= 0, --top-k >= 0, 0 < --top-p <= 1");
    }
    return STATUS_OK;
}

enum status command_generate(int argc, char **argv)
{
    struct request request = {.count = 128, .temperature = 0.8, .top_p = 1};
    struct option_result options;
    struct session session;
    struct model model = {0};
    const struct option_spec specs[] = {
        {"--prompt", OPTION_TEXT, &request.prompt, "TEXT", "text to continue"},
        {"--tokens", OPTION_TEXT, &request.tokens, "1,2,3", "token ids to continue"},
        {"--count", OPTION_INT, &request.count, "N", "tokens to add (128)"},
        {"--temperature", OPTION_REAL, &request.temperature, "T", "0: the most likely token (0.8)"},
        {"--top-k", OPTION_INT, &request.top_k, "K", "only the K most likely; 0: all (0)"},
        {"--top-p", OPTION_REAL, &request.top_p, "P", "only the most likely that make up P (1)"},
        {"--seed", OPTION_INT, &request.seed, "S", "of the random choice (0)"},
        {"--ema", OPTION_FLAG, &request.ema, NULL, "the running average of the weights"},
        {"--json", OPTION_FLAG, &request.json, NULL, "print token ids as JSON"},
        {0}};
    TRY(options_parse(&options, argc, argv, specs,
                      "generate RUN_DIR|CKPT_DIR --prompt TEXT [key=value ...]",
                      "Continues a prompt with the newest checkpoint.", 1, 1));
    if (options.help) {
        return STATUS_OK;
    }
    TRY(check(&request));
    const size_t words = strlen(request.prompt != NULL ? request.prompt : request.tokens);
    int32_t *ids = calloc(words + (size_t)request.count + 1, sizeof *ids);
    if (ids == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for %lld tokens",
                           (long long)request.count);
    }
    enum status status = session_open(&session, SESSION_USE, options.words[0], options.overrides,
                                      options.override_count);
    if (status == STATUS_OK) {
        status = generate(&session, &model, options.words[0], &request, ids);
    }
    free(ids);
    model_free(&model);
    return session_close(&session, status);
}
