#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/io.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/fim_tokens.h"
#include "trainer/run_tokenizer.h"
#include "trainer/sample.h"
#include "trainer/session.h"
#include "trainer/state.h"

enum { MOST_PROMPT_BYTES = 1 << 26 };

struct request {
    struct option_texts prompts;
    const char *file, *tokens, *tokenizer;
    const char *prefix, *suffix; /* of the middle to fill in; both NULL: continue prompts */
    int64_t count, seed, top_k;
    double temperature, top_p;
    bool ema, json;
};

/* Prompts as they came, and the sequences made of them. */
struct prompts {
    char *text;                        /* owned: the file's */
    const char **start;                /* [count] owned: each prompt, */
    size_t *bytes;                     /* [count] owned: its length */
    struct sample_sequence *sequences; /* [count] owned, with their ids */
    int64_t count;
    int64_t asked; /* tokens of the one sequence whose middle is filled in, before it is */
};

static void prompts_free(struct prompts *prompts)
{
    for (int64_t i = 0; prompts->sequences != NULL && i < prompts->count; i++) {
        free(prompts->sequences[i].ids);
    }
    free(prompts->sequences);
    free(prompts->start);
    free(prompts->bytes);
    free(prompts->text);
}

/* "1,2,3" into ids; returns how many, or -1 when malformed. */
static int64_t parse_tokens(int32_t *ids, const char *text, size_t bytes, int64_t vocab)
{
    int64_t count = 0;
    for (const char *at = text; at < text + bytes;) {
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

static int64_t count_lines(const char *text, size_t bytes)
{
    int64_t lines = bytes > 0 && text[bytes - 1] != '\n' ? 1 : 0;
    for (size_t i = 0; i < bytes; i++) {
        lines += text[i] == '\n' ? 1 : 0;
    }
    return lines;
}

static enum status reserve(struct prompts *prompts, int64_t count)
{
    prompts->count = count;
    prompts->start = calloc((size_t)count, sizeof *prompts->start);
    prompts->bytes = calloc((size_t)count, sizeof *prompts->bytes);
    prompts->sequences = calloc((size_t)count, sizeof *prompts->sequences);
    if (prompts->start == NULL || prompts->bytes == NULL || prompts->sequences == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for %lld prompts", (long long)count);
    }
    return STATUS_OK;
}

static enum status read_lines(struct prompts *prompts, const char *path)
{
    size_t bytes = 0;
    TRY(io_read_file(path, &prompts->text, &bytes, MOST_PROMPT_BYTES));
    const int64_t lines = count_lines(prompts->text, bytes);
    if (lines == 0) {
        return status_fail(STATUS_DATA, "%s: no prompts: write one a line", path);
    }
    TRY(reserve(prompts, lines));
    const char *at = prompts->text;
    for (int64_t i = 0; i < lines; i++) {
        const char *end = memchr(at, '\n', (size_t)(prompts->text + bytes - at));
        prompts->start[i] = at;
        prompts->bytes[i] = (size_t)((end != NULL ? end : prompts->text + bytes) - at);
        at += prompts->bytes[i] + 1;
    }
    return STATUS_OK;
}

static enum status collect(struct prompts *prompts, const struct request *request)
{
    if (request->file != NULL) {
        return read_lines(prompts, request->file);
    }
    TRY(reserve(prompts, request->tokens != NULL ? 1 : request->prompts.count));
    for (int64_t i = 0; i < prompts->count; i++) {
        prompts->start[i] = request->tokens != NULL ? request->tokens : request->prompts.text[i];
        prompts->bytes[i] = strlen(prompts->start[i]);
    }
    return STATUS_OK;
}

/* Ids of one prompt; an empty one stands at the start of a document. */
static enum status encode(struct sample_sequence *sequence, struct encoder *encoder,
                          struct id_list *ids, const char *text, size_t bytes)
{
    const int64_t eos = encoder->tokenizer->eos_id;
    ids->count = 0;
    TRY(encoder_run(encoder, text, bytes, ids));
    if (ids->count == 0 && eos < 0) {
        return status_fail(STATUS_USAGE, "generate: an empty prompt stands behind an end of "
                                         "document, which the tokenizer does not name");
    }
    if (ids->count == 0) {
        TRY(id_list_add(ids, (uint32_t)eos));
    }
    for (size_t i = 0; i < ids->count; i++) {
        sequence->ids[i] = (int32_t)ids->data[i];
    }
    sequence->count = (int64_t)ids->count;
    return STATUS_OK;
}

static enum status encode_all(struct prompts *prompts, const struct request *request,
                              const struct tokenizer *tokenizer, int64_t vocab)
{
    struct encoder encoder = {0};
    struct id_list ids = {0};
    enum status status = tokenizer != NULL ? encoder_open(&encoder, tokenizer) : STATUS_OK;
    for (int64_t i = 0; i < prompts->count && status == STATUS_OK; i++) {
        struct sample_sequence *sequence = &prompts->sequences[i];
        const size_t bytes = prompts->bytes[i]; /* no text has more tokens than this */
        sequence->ids = calloc(bytes + 1 + (size_t)request->count, sizeof *sequence->ids);
        if (sequence->ids == NULL) {
            status = status_fail(STATUS_RESOURCE, "out of memory for %lld tokens",
                                 (long long)request->count);
        } else if (tokenizer != NULL) {
            status = encode(sequence, &encoder, &ids, prompts->start[i], bytes);
        } else {
            sequence->count = parse_tokens(sequence->ids, prompts->start[i], bytes, vocab);
            status = sequence->count > 0
                         ? STATUS_OK
                         : status_fail(STATUS_USAGE,
                                       "generate: --tokens '%s': use ids from 0 to %lld with "
                                       "commas between, at least one",
                                       request->tokens, (long long)vocab - 1);
        }
    }
    encoder_close(&encoder);
    id_list_free(&ids);
    return status;
}

/* PREFIX prefix SUFFIX suffix MIDDLE, as in training (fim.h): the middle comes next. */
static enum status encode_middle(struct prompts *prompts, const struct request *request,
                                 const struct tokenizer *tokenizer, const struct fim *fim)
{
    const char *prefix = request->prefix != NULL ? request->prefix : "",
               *suffix = request->suffix != NULL ? request->suffix : "";
    struct encoder encoder = {0};
    struct id_list ids = {0};
    enum status status = encoder_open(&encoder, tokenizer);
    status = status == STATUS_OK ? id_list_add(&ids, (uint32_t)fim->prefix) : status;
    status = status == STATUS_OK ? encoder_run(&encoder, prefix, strlen(prefix), &ids) : status;
    status = status == STATUS_OK ? id_list_add(&ids, (uint32_t)fim->suffix) : status;
    status = status == STATUS_OK ? encoder_run(&encoder, suffix, strlen(suffix), &ids) : status;
    status = status == STATUS_OK ? id_list_add(&ids, (uint32_t)fim->middle) : status;
    status = status == STATUS_OK ? reserve(prompts, 1) : status;
    if (status == STATUS_OK) {
        struct sample_sequence *sequence = &prompts->sequences[0];
        sequence->ids = calloc(ids.count + (size_t)request->count, sizeof *sequence->ids);
        status = sequence->ids != NULL ? STATUS_OK
                                       : status_fail(STATUS_RESOURCE, "out of memory for a prompt");
        for (size_t i = 0; status == STATUS_OK && i < ids.count; i++) {
            sequence->ids[sequence->count++] = (int32_t)ids.data[i];
        }
        prompts->asked = sequence->count;
    }
    encoder_close(&encoder);
    id_list_free(&ids);
    return status;
}

static bool fills_in(const struct request *request)
{
    return request->prefix != NULL || request->suffix != NULL;
}

/* The text with its middle where it belongs. */
static enum status print_middle(const struct request *request, const struct tokenizer *tokenizer,
                                const struct prompts *prompts)
{
    const struct sample_sequence *sequence = &prompts->sequences[0];
    struct byte_list text = {0};
    const enum status status = tokenizer_show(tokenizer, sequence->ids + prompts->asked,
                                              sequence->count - prompts->asked, &text);
    if (status == STATUS_OK) {
        printf("%s%s%s\n", request->prefix != NULL ? request->prefix : "", text.data,
               request->suffix != NULL ? request->suffix : "");
    }
    byte_list_free(&text);
    return status;
}

static enum status print(const struct request *request, const struct tokenizer *tokenizer,
                         const int32_t *ids, int64_t total)
{
    if (request->tokens != NULL || request->json) {
        printf(request->json ? "{\"tokens\":[" : "");
        for (int64_t i = 0; i < total; i++) {
            printf("%s%d", i > 0 ? "," : "", ids[i]);
        }
        printf(request->json ? "]}\n" : "\n");
        return STATUS_OK;
    }
    struct byte_list text = {0};
    const enum status status = tokenizer_show(tokenizer, ids, total, &text);
    if (status == STATUS_OK) {
        printf("%s\n", text.data);
    }
    byte_list_free(&text);
    return status;
}

static enum status print_all(const struct request *request, const struct tokenizer *tokenizer,
                             const struct prompts *prompts)
{
    if (fills_in(request) && !request->json) {
        return print_middle(request, tokenizer, prompts);
    }
    for (int64_t i = 0; i < prompts->count; i++) {
        if (prompts->count > 1 && !request->json) {
            printf("--- %lld of %lld ---\n", (long long)i + 1, (long long)prompts->count);
        }
        TRY(print(request, tokenizer, prompts->sequences[i].ids, prompts->sequences[i].count));
    }
    return STATUS_OK;
}

/* What to go on from. */
static enum status read_prompts(struct session *session, struct tokenizer *tokenizer,
                                const char *path, const struct request *request,
                                struct prompts *prompts)
{
    const bool text = request->tokens == NULL;
    if (text) {
        TRY(run_tokenizer_open(tokenizer, session, path, request->tokenizer, "use --tokens"));
    }
    struct fim fim = {0};
    enum status status = STATUS_OK;
    if (fills_in(request)) {
        status = fim_tokens_find(&fim, &session->config, tokenizer, path);
        status = status == STATUS_OK ? encode_middle(prompts, request, tokenizer, &fim) : status;
        return comm_agree(&session->world, status, NULL);
    }
    status = collect(prompts, request);
    if (status == STATUS_OK) {
        status =
            encode_all(prompts, request, text ? tokenizer : NULL, session->config.model.vocab_size);
    }
    return comm_agree(&session->world, status, NULL);
}

static enum status generate(struct session *session, struct model *model,
                            struct tokenizer *tokenizer, const char *path,
                            const struct request *request, struct prompts *prompts)
{
    const struct config *config = &session->config;
    const int64_t context = config->train.sequence_length;
    TRY(read_prompts(session, tokenizer, path, request, prompts));
    const int64_t most = prompts->count > context ? prompts->count : context;
    TRY(comm_agree(&session->world,
                   model_init(model, config, &session->mesh, session->device, 1, most, false),
                   NULL));
    TRY(state_load_newest(model, path, request->ema));
    const struct sample_options options = {.temperature = request->temperature,
                                           .top_k = request->top_k,
                                           .top_p = request->top_p,
                                           .seed = (uint64_t)request->seed,
                                           .eos_id =
                                               request->tokens == NULL ? tokenizer->eos_id : -1,
                                           .context = context};
    TRY(sample_tokens(model, prompts->sequences, prompts->count, request->count, &options));
    return session_main_rank(session) ? print_all(request, tokenizer, prompts) : STATUS_OK;
}

static enum status check(const struct request *request)
{
    const int sources = (request->prompts.count > 0) + (request->file != NULL) +
                        (request->tokens != NULL) + (fills_in(request) ? 1 : 0);
    if (sources != 1) {
        return status_fail(STATUS_USAGE, "generate: give --prompt TEXT (once or more), --prompts "
                                         "FILE, --tokens 1,2,3, or --fim-prefix and --fim-suffix");
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
    struct tokenizer tokenizer = {0};
    struct prompts prompts = {0};
    const struct option_spec specs[] = {
        {"--prompt", OPTION_TEXTS, &request.prompts, "TEXT",
         "text to continue; several make a batch"},
        {"--prompts", OPTION_TEXT, &request.file, "FILE", "texts to continue, one a line"},
        {"--tokens", OPTION_TEXT, &request.tokens, "1,2,3", "token ids to continue"},
        {"--fim-prefix", OPTION_TEXT, &request.prefix, "TEXT",
         "fill in what stands behind this text"},
        {"--fim-suffix", OPTION_TEXT, &request.suffix, "TEXT",
         "and before this one (either may be left out)"},
        {"--tokenizer", OPTION_TEXT, &request.tokenizer, "bytes|FILE",
         "of the texts, where the checkpoint has none beside it"},
        {"--count", OPTION_INT, &request.count, "N", "tokens to add to each (128)"},
        {"--temperature", OPTION_REAL, &request.temperature, "T", "0: the most likely token (0.8)"},
        {"--top-k", OPTION_INT, &request.top_k, "K", "only the K most likely; 0: all (0)"},
        {"--top-p", OPTION_REAL, &request.top_p, "P", "only the most likely that make up P (1)"},
        {"--seed", OPTION_INT, &request.seed, "S", "of the random choice, for every prompt (0)"},
        {"--ema", OPTION_FLAG, &request.ema, NULL, "the running average of the weights"},
        {"--json", OPTION_FLAG, &request.json, NULL, "print token ids as JSON, a line a prompt"},
        {0}};
    TRY(options_parse(
        &options, argc, argv, specs, "generate RUN_DIR|CKPT_DIR --prompt TEXT [key=value ...]",
        "Continues prompts with the newest checkpoint; what becomes of one does not depend on the "
        "others.\n"
        "Keys and values are cached. When a text outgrows train.sequence_length, its older half is "
        "dropped and\n"
        "the rest computed again; train.sequence_length=N (up to model.max_position_embeddings) "
        "changes the limit.",
        1, 1));
    if (options.help) {
        return STATUS_OK;
    }
    TRY(check(&request));
    enum status status = session_open(&session, SESSION_USE, options.words[0], options.overrides,
                                      options.override_count);
    if (status == STATUS_OK) {
        status = generate(&session, &model, &tokenizer, options.words[0], &request, &prompts);
    }
    prompts_free(&prompts);
    tokenizer_close(&tokenizer);
    model_free(&model);
    return session_close(&session, status);
}
