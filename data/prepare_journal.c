#include "data/prepare_journal.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VERSION = 2, MAX_PATH = 4096 };

/* The state as numbers, one after another. */
enum { NUMBERS = sizeof(struct prepare_state) / sizeof(int64_t) };
_Static_assert(NUMBERS * sizeof(int64_t) == sizeof(struct prepare_state), "nothing but int64_t");

static uint64_t hash_request(const struct prepare_rules *rules)
{
    const struct prepare_options *options = rules->options;
    char text[1024];
    snprintf(
        text, sizeof text,
        "%d %016" PRIx64 " tokenizer %s %s eos %lld vocabulary %lld template %s invalid %d %d %d "
        "%d %d most %lld left out %lld %lld",
        VERSION, input_files_hash(rules->files),
        rules->text_allowed ? tokenizer_name(&rules->tokenizer) : "none", rules->tokenizer.hash,
        (long long)rules->tokenizer.eos_id, (long long)rules->vocab_size,
        options->chat_template != NULL ? options->chat_template : "", (int)options->invalid,
        options->skip_broken, options->keep_binary, options->count_prompt, options->dedup,
        (long long)options->most_document_bytes, (long long)rules->files->by_size,
        (long long)rules->files->left_out);
    return hash_bytes(text, strlen(text));
}

/* Whether the journal is whole and of this request; its state then. */
static bool read_journal(const struct prepare_journal *journal, struct prepare_state *state)
{
    char *text = NULL, wanted[17];
    size_t bytes = 0;
    int64_t numbers[NUMBERS];
    hash_hex(wanted, journal->request);
    if (io_read_file(journal->path, &text, &bytes, 1 << 20) != STATUS_OK) {
        return false;
    }
    json_t *json = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, NULL);
    const char *request = json_string_value(json_object_get(json, "request"));
    const json_t *list = json_object_get(json, "state");
    bool good = request != NULL && strcmp(request, wanted) == 0 && json_array_size(list) == NUMBERS;
    for (size_t i = 0; i < NUMBERS && good; i++) {
        const json_t *number = json_array_get(list, i);
        numbers[i] = (int64_t)json_integer_value(number);
        good = json_is_integer(number) && numbers[i] >= 0;
    }
    if (good) {
        memcpy(state, numbers, sizeof *state);
    }
    json_decref(json);
    free(text);
    return good;
}

static enum status take_lock(struct prepare_journal *journal, const char *output)
{
    const enum status status = io_lock(&journal->lock, journal->lock_path);
    return status != STATUS_USAGE
               ? status
               : status_fail(STATUS_USAGE,
                             "prepare: another prepare writes %s: wait for it, or name another "
                             "--output",
                             output);
}

enum status prepare_journal_open(struct prepare_journal *journal, const struct prepare_rules *rules,
                                 struct prepare_state *state, const char **why)
{
    const char *output = rules->options->output;
    *journal = (struct prepare_journal){.lock.fd = -1, .hashes.fd = -1};
    *state = (struct prepare_state){0};
    *why = NULL;
    if (strlen(output) + 16 > MAX_PATH) {
        return status_fail(STATUS_USAGE, "prepare: the name of --output is too long");
    }
    snprintf(journal->path, MAX_PATH, "%s.journal", output);
    snprintf(journal->hashes_path, MAX_PATH, "%s.hashes.tmp", output);
    snprintf(journal->lock_path, MAX_PATH, "%s.lock", output);
    journal->request = hash_request(rules);
    TRY(take_lock(journal, output));
    if (io_exists(journal->path)) {
        journal->there = read_journal(journal, state);
        *why = journal->there ? NULL : "is of other inputs or options";
    }
    return STATUS_OK;
}

enum status prepare_journal_hashes(struct prepare_journal *journal, int64_t keep)
{
    const int64_t bytes = keep * (int64_t)sizeof(struct hash128);
    int64_t there = 0;
    journal->hash_count = keep;
    if (keep == 0) {
        return io_create(&journal->hashes, journal->hashes_path);
    }
    TRY(io_open_write(&journal->hashes, journal->hashes_path));
    TRY(io_size(&journal->hashes, &there));
    if (there < bytes) {
        return status_fail(STATUS_DATA, "%s: ends too early", journal->hashes_path);
    }
    return io_truncate(&journal->hashes, bytes);
}

enum status prepare_journal_add(struct prepare_journal *journal, const struct hash128 *hashes,
                                int64_t count)
{
    const int64_t at = journal->hash_count * (int64_t)sizeof *hashes;
    journal->hash_count += count;
    return io_pwrite(&journal->hashes, hashes, (size_t)count * sizeof *hashes, at);
}

enum status prepare_journal_read(const char *output, int64_t hashes, struct document_set *set)
{
    enum { PIECE = 4096 };
    char path[MAX_PATH];
    struct hash128 piece[PIECE];
    struct io_file file;
    snprintf(path, sizeof path, "%s.hashes.tmp", output);
    TRY(io_open_read(&file, path));
    enum status status = STATUS_OK;
    for (int64_t at = 0; at < hashes && status == STATUS_OK; at += PIECE) {
        const int64_t count = hashes - at < PIECE ? hashes - at : PIECE;
        status = io_pread(&file, piece, (size_t)count * sizeof *piece, at * (int64_t)sizeof *piece);
        for (int64_t i = 0; i < count && status == STATUS_OK; i++) {
            bool added;
            status = document_set_add(set, piece[i], &added);
        }
    }
    const enum status closed = io_close(&file);
    return status == STATUS_OK ? closed : status;
}

enum status prepare_journal_save(struct prepare_journal *journal, const struct prepare_state *state)
{
    char text[NUMBERS * 24 + 128], request[17];
    int64_t numbers[NUMBERS];
    memcpy(numbers, state, sizeof numbers);
    hash_hex(request, journal->request);
    if (journal->hashes.fd >= 0) {
        TRY(io_sync(&journal->hashes));
    }
    int length = snprintf(text, sizeof text, "{\"request\":\"%s\",\"state\":[", request);
    for (int i = 0; i < NUMBERS; i++) {
        length += snprintf(text + length, sizeof text - (size_t)length, "%s%lld", i > 0 ? "," : "",
                           (long long)numbers[i]);
    }
    length += snprintf(text + length, sizeof text - (size_t)length, "]}\n");
    TRY(io_write_file(journal->path, text, (size_t)length));
    journal->there = true;
    return STATUS_OK;
}

void prepare_journal_close(struct prepare_journal *journal, bool keep)
{
    const enum status ignored = io_close(&journal->hashes);
    (void)ignored;
    if (journal->lock.path != NULL) { /* ours to remove */
        if (!keep) {
            char beside[MAX_PATH + 8];
            snprintf(beside, sizeof beside, "%s.tmp", journal->path);
            io_discard(journal->path);
            io_discard(beside);
            io_discard(journal->hashes_path);
        }
        io_discard(journal->lock_path);
    }
    io_unlock(&journal->lock);
    *journal = (struct prepare_journal){.lock.fd = -1, .hashes.fd = -1};
}
