#include "trainer/run_tokenizer.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/run_dir.h"

enum { MAX_PATH = 4096 };

/* Of a tokenizer's copy in a run directory; said: its kind, or kind and hash. */
static const char *file_name(const char *said)
{
    return strncmp(said, "sentencepiece", 13) == 0 ? "tokenizer.model" : "tokenizer.json";
}

void run_tokenizer_describe(const struct token_store *store, char name[STATE_TOKENIZER_BYTES])
{
    if (store->tokenizer_file_bytes > 0) {
        snprintf(name, STATE_TOKENIZER_BYTES, "%.31s:%.31s", store->tokenizer,
                 store->tokenizer_hash);
    } else {
        snprintf(name, STATE_TOKENIZER_BYTES, "%s", store->tokenizer);
    }
}

static enum status check_vocab(const struct tokenizer *tokenizer, int64_t vocab)
{
    return tokenizer->vocab_size <= vocab
               ? STATUS_OK
               : status_fail(STATUS_USAGE,
                             "its tokenizer has ids up to %lld, model.vocab_size is %lld",
                             (long long)tokenizer->vocab_size - 1, (long long)vocab);
}

enum status run_tokenizer_of_data(struct tokenizer *tokenizer, const struct token_store *store,
                                  int64_t vocab)
{
    *tokenizer = (struct tokenizer){0};
    if (store->tokenizer_file_bytes > 0) {
        TRY(tokenizer_read(tokenizer, store->path, store->tokenizer_file,
                           store->tokenizer_file_bytes));
        tokenizer->eos_id = store->eos_id;
    } else if (strcmp(store->tokenizer, "bytes") == 0) {
        TRY(tokenizer_open(tokenizer, "bytes"));
    } else {
        return status_fail(STATUS_USAGE, "%s is of tokenizer '%s'", store->path, store->tokenizer);
    }
    return check_vocab(tokenizer, vocab);
}

static void name_token(json_t *json, const char *key, const struct tokenizer *tokenizer, int64_t id)
{
    size_t bytes = 0;
    const char *text = token_table_text(&tokenizer->tokens, id, &bytes);
    if (text != NULL) { /* left out when not UTF-8 */
        json_object_set_new(json, key, json_stringn(text, bytes));
    }
}

enum status run_tokenizer_keep(const struct session *session, const struct token_store *store)
{
    struct tokenizer tokenizer;
    char path[MAX_PATH];
    if (store->tokenizer_file_bytes == 0) {
        return STATUS_OK;
    }
    enum status status = run_tokenizer_of_data(&tokenizer, store, INT64_MAX);
    json_t *json = json_object();
    char *text = NULL;
    if (status == STATUS_OK) {
        name_token(json, "bos_token", &tokenizer, tokenizer.bos_id);
        name_token(json, "eos_token", &tokenizer, tokenizer.eos_id);
        text = json_dumps(json, JSON_INDENT(1));
        status = text != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory");
    }
    if (status == STATUS_OK) {
        run_dir_path(session, file_name(tokenizer_name(&tokenizer)), path, sizeof path);
        status = io_write_file(path, store->tokenizer_file, store->tokenizer_file_bytes);
    }
    if (status == STATUS_OK) {
        run_dir_path(session, "tokenizer_config.json", path, sizeof path);
        status = io_write_file(path, text, strlen(text));
    }
    free(text);
    json_decref(json);
    tokenizer_close(&tokenizer);
    return status;
}

/* Whether `said` ("bpe:HASH") means this tokenizer; "unknown" may be any. */
static bool is_meant(const char *said, const struct tokenizer *tokenizer)
{
    char own[STATE_TOKENIZER_BYTES];
    snprintf(own, sizeof own, "%s%s%s", tokenizer_name(tokenizer),
             tokenizer->kind == TOKENIZER_BYTES ? "" : ":",
             tokenizer->kind == TOKENIZER_BYTES ? "" : tokenizer->hash);
    return strcmp(said, "unknown") == 0 || strcmp(said, own) == 0;
}

/* The copy in the run directory of the run in `place`, or of the run whose checkpoint it is; else
 * `said` if that is "bytes". */
static enum status find(struct tokenizer *tokenizer, const char *place, const char *said,
                        int64_t vocab, const char *instead)
{
    static const char *const where[] = {"", "/../.."};
    char path[MAX_PATH + 32];
    if (strcmp(said, "bytes") == 0 && vocab >= TOKENIZER_BYTES_VOCAB) {
        return tokenizer_open(tokenizer, "bytes");
    }
    for (size_t i = 0; i < sizeof where / sizeof where[0]; i++) {
        snprintf(path, sizeof path, "%.4000s%s/%s", place, where[i], file_name(said));
        if (strchr(said, ':') == NULL || !io_exists(path)) {
            continue;
        }
        TRY(tokenizer_open(tokenizer, path));
        if (is_meant(said, tokenizer)) {
            return STATUS_OK;
        }
        tokenizer_close(tokenizer);
    }
    return status_fail(STATUS_USAGE,
                       "%s: text needs the tokenizer of the model, which has %lld ids of tokenizer "
                       "'%s': give --tokenizer FILE, or %s",
                       place, (long long)vocab, said, instead);
}

static enum status open_local(struct tokenizer *tokenizer, const char *place, const char *file,
                              const char *said, int64_t vocab, const char *instead)
{
    if (file == NULL) {
        TRY(find(tokenizer, place, said, vocab, instead));
    } else {
        TRY(tokenizer_open(tokenizer, file));
        if (!is_meant(said, tokenizer)) {
            return status_fail(STATUS_USAGE,
                               "--tokenizer %s is %s:%s, but %s was trained with '%s': text would "
                               "become other ids",
                               file, tokenizer_name(tokenizer), tokenizer->hash, place, said);
        }
    }
    return check_vocab(tokenizer, vocab);
}

enum status run_tokenizer_open(struct tokenizer *tokenizer, struct session *session,
                               const char *place, const char *file, const char *instead)
{
    const int64_t vocab = session->config.model.vocab_size;
    char said[STATE_TOKENIZER_BYTES];
    *tokenizer = (struct tokenizer){0};
    TRY(state_tokenizer(&session->world, place, vocab, said));
    return comm_agree(&session->world, open_local(tokenizer, place, file, said, vocab, instead),
                      NULL);
}

static bool says_nothing(const char *said)
{
    return strcmp(said, "unknown") == 0 || strcmp(said, "none") == 0;
}

enum status run_tokenizer_match(struct session *session, const char *place,
                                const struct token_store *store)
{
    char said[STATE_TOKENIZER_BYTES], own[STATE_TOKENIZER_BYTES];
    TRY(state_tokenizer(&session->world, place, session->config.model.vocab_size, said));
    run_tokenizer_describe(store, own);
    return says_nothing(said) || says_nothing(own) || strcmp(said, own) == 0
               ? STATUS_OK
               : status_fail(STATUS_USAGE,
                             "%s has ids of tokenizer %s, %s was trained with %s: prepare the text "
                             "with that one",
                             store->path, own, place, said);
}

enum status run_tokenizer_carry(struct session *session, const char *place,
                                char name[STATE_TOKENIZER_BYTES])
{
    char said[STATE_TOKENIZER_BYTES];
    TRY(state_tokenizer(&session->world, place, session->config.model.vocab_size, said));
    if (says_nothing(name) && !says_nothing(said)) {
        snprintf(name, STATE_TOKENIZER_BYTES, "%s", said);
    }
    return STATUS_OK;
}
