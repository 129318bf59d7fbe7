#define _GNU_SOURCE
#include "data/prepare.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "data/prepare_journal.h"
#include "data/prepare_pipeline.h"
#include "kernels/base/io.h"
#include "parallel/cores.h"

enum { MAX_CORES = 1024, MAX_NOTES = 10 };

/* What a rank says of its batch before anything of the round is written. */
struct head {
    int64_t status, ended, stop, save, documents;
};

/* And of what it will write. */
struct tail {
    int64_t masked, continues, binary; /* the latter two of a piece of a text */
    struct token_position size;
    struct prepare_summary counts;
};

struct run {
    const struct prepare_options *options;
    struct comm *world, alone;
    struct input_files files;
    struct prepare_rules rules;
    struct prepare_journal journal; /* of rank 0 */
    struct prepare_pipeline *pipeline;
    struct token_writer *writer;
    struct document_set set;
    struct prepare_state state, safe; /* the end of this round; what is surely written */
    struct prepare_block *block;      /* of this round; NULL: none is left */
    enum status status;               /* of this rank's writing, until the others hear of it */
    struct head *heads;               /* [size] owned */
    struct tail *tails;               /* [size] owned */
    struct hash128 *hashes;           /* [size][hash_room] owned */
    bool *keep;                       /* [hash_room] owned */
    int64_t hash_room;
    int notes;
    double saved_at, shown_at;
};

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void note(const struct run *run, const char *line)
{
    if (run->options->note != NULL) {
        run->options->note(run->options->context, line);
    }
}

static void add_counts(struct prepare_summary *to, const struct prepare_summary *more)
{
    int64_t sum[PREPARE_COUNTS], add[PREPARE_COUNTS];
    memcpy(sum, to, sizeof *to);
    memcpy(add, more, sizeof *more);
    for (size_t i = 0; i < PREPARE_COUNTS; i++) {
        sum[i] += add[i];
    }
    memcpy(to, sum, sizeof *to);
}

/* --- before --- */

/* Rules and files, the same on every rank. */
static enum status look(struct run *run)
{
    struct input_filter filter = run->options->filter;
    filter.output = run->options->output;
    TRY(io_check_output(run->options->output));
    TRY(prepare_rules_open(&run->rules, run->options));
    TRY(input_files_list(&run->files, run->options->inputs, run->options->input_count, &filter));
    run->rules.files = &run->files;
    run->heads = calloc((size_t)run->world->size, sizeof *run->heads);
    run->tails = calloc((size_t)run->world->size, sizeof *run->tails);
    return run->heads != NULL && run->tails != NULL
               ? STATUS_OK
               : status_fail(STATUS_RESOURCE, "out of memory for %d ranks", run->world->size);
}

static enum status agree_on_files(struct run *run)
{
    const struct head mine = {.documents = (int64_t)input_files_hash(&run->files)};
    comm_all_gather(run->world, run->heads, &mine, sizeof mine);
    for (int r = 0; r < run->world->size; r++) {
        if (run->heads[r].documents != run->heads[0].documents) {
            return status_fail(STATUS_DATA,
                               "prepare: rank %d finds other inputs than rank 0: are they on a "
                               "shared file system, and does nobody write them?",
                               r);
        }
    }
    return STATUS_OK;
}

static enum status open_writer(struct run *run, bool keep)
{
    const struct tokenizer *tokenizer = &run->rules.tokenizer;
    const bool text = run->rules.text_allowed;
    const struct token_writer_options options = {.vocab_size = run->rules.vocab_size,
                                                 .eos_id = text ? tokenizer->eos_id : -1,
                                                 .tokenizer =
                                                     text ? tokenizer_name(tokenizer) : "none",
                                                 .tokenizer_hash = text ? tokenizer->hash : "none",
                                                 .tokenizer_file = tokenizer->file.data,
                                                 .tokenizer_file_bytes = tokenizer->file.count,
                                                 .shared = run->world->size > 1,
                                                 .keep = keep};
    return token_writer_open(&run->writer, run->options->output, &options);
}

/* Where the journal says, if what it speaks of is there. */
static enum status go_on(struct run *run)
{
    TRY(open_writer(run, true));
    TRY(token_writer_cut(run->writer, run->state.end));
    return run->options->dedup ? prepare_journal_hashes(&run->journal, run->state.hashes)
                               : STATUS_OK;
}

static enum status begin_anew(struct run *run)
{
    run->state = (struct prepare_state){0};
    run->state.counts.files = run->files.count;
    run->state.counts.skipped_by_size = run->files.by_size;
    run->state.counts.skipped_by_name = run->files.left_out;
    TRY(io_remove(run->journal.path));
    run->journal.there = false;
    TRY(open_writer(run, false));
    return run->options->dedup ? prepare_journal_hashes(&run->journal, 0) : STATUS_OK;
}

static enum status begin(struct run *run)
{
    const char *why = NULL;
    char line[4096 + 128];
    TRY(token_writer_folder(run->options->output));
    TRY(prepare_journal_open(&run->journal, &run->rules, &run->state, &why));
    if (run->journal.there) {
        const enum status status = go_on(run);
        if (status == STATUS_OK) {
            run->state.counts.resumed = run->state.end.tokens;
            run->state.counts.resumed_bytes = run->state.counts.bytes;
            run->state.counts.resumed_disk_bytes = run->state.counts.disk_bytes;
            snprintf(line, sizeof line,
                     "%s: an interrupted prepare wrote %lld tokens: going on there",
                     run->options->output, (long long)run->state.end.tokens);
            note(run, line);
            return STATUS_OK;
        }
        token_writer_leave(run->writer);
        run->writer = NULL;
        why = "is not whole";
    }
    if (why != NULL) {
        snprintf(line, sizeof line, "%s: what an interrupted prepare left %s: starting anew",
                 run->options->output, why);
        note(run, line);
    }
    return begin_anew(run);
}

/* Rank 0 decides where to begin; the others open what it made. */
static enum status open_all(struct run *run)
{
    int cores[MAX_CORES];
    const int share = cores_share(run->world, 0, cores, MAX_CORES),
              workers = run->options->workers > 0 ? run->options->workers : share;
    const bool root = run->world->rank == 0;
    TRY(comm_agree(run->world, root ? begin(run) : STATUS_OK, NULL));
    comm_broadcast(run->world, &run->state, sizeof run->state, 0);
    enum status status = root ? STATUS_OK : open_writer(run, true);
    if (status == STATUS_OK && run->options->dedup) {
        status = prepare_journal_read(run->options->output, run->state.hashes, &run->set);
    }
    if (status == STATUS_OK) {
        status = prepare_pipeline_open(&run->pipeline, &run->rules, workers,
                                       run->state.batches + run->world->rank, run->world->size);
    }
    run->safe = run->state;
    run->saved_at = now();
    return comm_agree(run->world, status, NULL);
}

/* --- rounds: a batch of each rank --- */

/* What was written reaches the disk, then the journal says so. Collective. */
static enum status save(struct run *run)
{
    const bool root = run->world->rank == 0;
    TRY(comm_agree(run->world, token_writer_sync(run->writer), NULL));
    run->saved_at = now();
    return comm_agree(run->world,
                      root ? prepare_journal_save(&run->journal, &run->safe) : STATUS_OK, NULL);
}

static enum status make_hash_room(struct run *run, int64_t documents)
{
    const size_t size = (size_t)run->world->size;
    if (documents > run->hash_room) {
        free(run->hashes);
        free(run->keep);
        run->hash_room = 2 * documents;
        run->hashes = malloc((size_t)run->hash_room * size * sizeof *run->hashes);
        run->keep = malloc((size_t)run->hash_room * sizeof *run->keep);
        if (run->hashes == NULL || run->keep == NULL) {
            run->hash_room = 0;
            return status_fail(STATUS_RESOURCE, "out of memory for %lld documents",
                               (long long)documents);
        }
    }
    return STATUS_OK;
}

/* Marks the first of equal documents of all ranks, in order. hashes: [size][most]. */
static enum status mark_first(struct run *run, int64_t most)
{
    const bool root = run->world->rank == 0;
    for (int r = 0; r < run->world->size; r++) {
        struct hash128 *hashes = run->hashes + r * most;
        int64_t kept = 0;
        for (int64_t d = 0; d < run->heads[r].documents; d++) {
            bool added = true;
            TRY(document_set_add(&run->set, hashes[d], &added));
            if (r == run->world->rank) {
                run->keep[d] = added;
            }
            hashes[kept] = hashes[d];
            kept += added;
        }
        if (root) {
            TRY(token_writer_settle(run->writer));
            TRY(prepare_journal_add(&run->journal, hashes, kept));
        }
        run->state.hashes += kept;
    }
    return STATUS_OK;
}

/* Leaves out documents that came before, on whichever rank. Collective. */
static enum status drop_doubles(struct run *run)
{
    int64_t most = 0;
    for (int r = 0; r < run->world->size; r++) {
        most = run->heads[r].documents > most ? run->heads[r].documents : most;
    }
    if (most == 0) {
        return STATUS_OK;
    }
    TRY(comm_agree(run->world, make_hash_room(run, most), NULL));
    struct hash128 *mine = run->hashes + run->world->rank * most;
    if (run->block != NULL && run->block->documents > 0) {
        memcpy(mine, run->block->hashes, (size_t)run->block->documents * sizeof *mine);
    }
    comm_all_gather(run->world, run->hashes, mine, (size_t)most * sizeof *mine);
    TRY(comm_agree(run->world, mark_first(run, most), NULL));
    if (run->block != NULL) {
        prepare_block_keep(run->block, run->keep, run->rules.width);
    }
    return STATUS_OK;
}

static struct tail tail_of(const struct run *run)
{
    const struct prepare_block *block = run->block;
    return block == NULL ? (struct tail){0}
                         : (struct tail){.masked = block->masked,
                                         .continues = block->continues,
                                         .binary = block->binary,
                                         .size = {(int64_t)block->tokens.count / run->rules.width,
                                                  block->documents},
                                         .counts = block->counts};
}

/* Adds what a rank has; pieces of a text that is binary are read and nothing else. */
static void add_tail(struct prepare_state *state, const struct tail *tail)
{
    state->left_out = tail->binary || (tail->continues && state->left_out);
    if (state->left_out) {
        state->counts.bytes += tail->counts.bytes;
        state->counts.disk_bytes += tail->counts.disk_bytes;
        state->counts.skipped_binary += tail->counts.skipped_binary;
        return;
    }
    state->end.tokens += tail->size.tokens;
    state->end.documents += tail->size.documents;
    state->masked = state->masked || tail->masked;
    add_counts(&state->counts, &tail->counts);
}

/* Writes this rank's block behind those of lower ranks. */
static enum status write_block(struct run *run)
{
    const struct tail mine = tail_of(run);
    struct token_position at = {0};
    bool left_out = false;
    comm_all_gather(run->world, run->tails, &mine, sizeof mine);
    for (int r = 0; r < run->world->size; r++) {
        if (r == run->world->rank) {
            at = run->state.end;
        }
        add_tail(&run->state, &run->tails[r]);
        left_out = r == run->world->rank ? run->state.left_out != 0 : left_out;
    }
    run->state.batches += run->world->size;
    if (run->block == NULL || left_out) {
        return STATUS_OK;
    }
    const struct token_block block = {
        .tokens = run->block->tokens.data,
        .mask = run->block->masked ? (const uint8_t *)run->block->mask.data : NULL,
        .lengths = run->block->lengths,
        .count = mine.size.tokens,
        .documents = mine.size.documents};
    return token_writer_put(run->writer, at, &block);
}

/* Lines and files that are too long are named, the first of them. */
static void tell(struct run *run)
{
    const int64_t limit = run->options->most_document_bytes;
    for (int i = 0; run->block != NULL && i < run->block->note_count; i++) {
        char where[4096 + 32], line[4096 + 256];
        if (run->notes++ < MAX_NOTES) {
            document_where(&run->files, &run->block->notes[i], where, sizeof where);
            snprintf(line, sizeof line,
                     "%s: skipped: longer than %lld bytes (--max-document-bytes)", where,
                     (long long)(limit > 0 ? limit : PREPARE_MOST_DOCUMENT));
            note(run, line);
        }
    }
}

static void show(struct run *run)
{
    if (run->options->progress != NULL && run->world->rank == 0 && now() - run->shown_at > 0.2) {
        run->shown_at = now();
        run->options->progress(run->options->context, &run->state.counts, run->files.bytes);
    }
}

/* The next batch of each rank, and what they say of it; *over: there is none, or it is to stop. */
static enum status begin_round(struct run *run, bool *over)
{
    const struct prepare_options *options = run->options;
    bool stop = false, wants_save = false;
    *over = true;
    if (run->status == STATUS_OK) {
        run->status = prepare_pipeline_take(run->pipeline, &run->block);
    }
    const struct head mine = {.status = (int64_t)run->status,
                              .ended = run->block == NULL,
                              .stop = options->stop != NULL && options->stop(),
                              .save = now() - run->saved_at >= options->journal_seconds,
                              .documents = run->block != NULL ? run->block->documents : 0};
    comm_all_gather(run->world, run->heads, &mine, sizeof mine);
    for (int r = 0; r < run->world->size; r++) {
        if (run->heads[r].status != STATUS_OK) {
            return comm_agree(run->world, run->status, NULL);
        }
        *over = *over && run->heads[r].ended;
        stop = stop || run->heads[r].stop;
        wants_save = wants_save || run->heads[r].save;
    }
    run->safe = run->state;
    if (*over) {
        return STATUS_OK;
    }
    if (stop) {
        return status_fail(STATUS_PREEMPTED,
                           "prepare: stopped after %lld tokens: the same command goes on there",
                           (long long)run->state.end.tokens);
    }
    return wants_save && run->safe.batches > 0 ? save(run) : STATUS_OK;
}

static enum status run_rounds(struct run *run)
{
    for (;;) {
        bool over = false;
        run->block = NULL;
        TRY(begin_round(run, &over));
        if (over) {
            return STATUS_OK;
        }
        if (run->options->dedup) {
            TRY(drop_doubles(run));
        }
        tell(run);
        run->status = write_block(run);
        if (run->block != NULL) {
            prepare_pipeline_give(run->pipeline);
        }
        show(run);
    }
}

/* --- after --- */

static enum status no_tokens(const struct run *run)
{
    const struct prepare_summary *counts = &run->state.counts;
    return status_fail(STATUS_DATA,
                       "%s: the inputs hold no tokens: %lld files; skipped %lld empty, %lld of "
                       "invalid UTF-8, %lld binary, %lld too long, %lld by size, %lld by name, "
                       "%lld broken, %lld without answer",
                       run->options->output, (long long)counts->files,
                       (long long)counts->skipped_empty, (long long)counts->skipped_invalid,
                       (long long)counts->skipped_binary, (long long)counts->skipped_long,
                       (long long)counts->skipped_by_size, (long long)counts->skipped_by_name,
                       (long long)counts->skipped_broken, (long long)counts->skipped_unanswered);
}

/* Every rank's blocks are on the disk; rank 0 makes the file of them. */
static enum status publish(struct run *run)
{
    const bool root = run->world->rank == 0;
    TRY(comm_agree(run->world, root ? STATUS_OK : token_writer_sync(run->writer), NULL));
    enum status status = STATUS_OK;
    if (root) {
        token_writer_reach(run->writer, run->state.end, run->state.masked != 0);
        status = run->state.end.tokens > 0 ? token_writer_publish(run->writer) : no_tokens(run);
    }
    return comm_agree(run->world, status, NULL);
}

/* After an error that is not of the inputs: the journal says how far it got, if it can. */
static bool keep_for_later(struct run *run, enum status status)
{
    char message[4096 + 512];
    if (status == STATUS_OK || status == STATUS_USAGE || status == STATUS_DATA) {
        return false;
    }
    snprintf(message, sizeof message, "%s", status_message());
    int64_t able = run->writer != NULL && run->pipeline != NULL;
    int64_t all = -able;
    comm_all_reduce(run->world, &all, 1, DTYPE_I64, REDUCE_MAX);
    const enum status saved = all == -1 && run->safe.batches > 0 ? save(run) : STATUS_OK;
    (void)saved; /* an earlier one holds then */
    const enum status ignored = status_fail(status, "%s", message);
    (void)ignored;
    int64_t there = run->journal.there;
    comm_broadcast(run->world, &there, sizeof there, 0);
    return there != 0;
}

static void run_free(struct run *run, bool keep)
{
    const bool root = run->world->rank == 0;
    prepare_pipeline_close(run->pipeline);
    if (root && !keep) {
        token_writer_abandon(run->writer);
    } else {
        token_writer_leave(run->writer);
    }
    prepare_journal_close(&run->journal, keep);
    document_set_free(&run->set);
    prepare_rules_close(&run->rules);
    input_files_free(&run->files);
    free(run->heads);
    free(run->tails);
    free(run->hashes);
    free(run->keep);
}

enum status prepare_run(const struct prepare_options *options, struct prepare_summary *summary)
{
    struct run run = {.options = options, .world = options->world};
    *summary = (struct prepare_summary){0};
    if (run.world == NULL) {
        TRY(comm_open(&run.alone, "self"));
        run.world = &run.alone;
    }
    enum status status = comm_agree(run.world, look(&run), NULL);
    status = status == STATUS_OK ? agree_on_files(&run) : status;
    status = status == STATUS_OK ? open_all(&run) : status;
    status = status == STATUS_OK ? run_rounds(&run) : status;
    status = status == STATUS_OK ? publish(&run) : status;
    const bool keep = keep_for_later(&run, status);
    *summary = run.state.counts;
    run_free(&run, keep);
    if (run.world == &run.alone) {
        comm_close(&run.alone);
    }
    return status;
}
