/* prepare: texts and conversations become a token file.
 *
 * Inputs are text files, folders, .jsonl (document_line.h), each of them also as .gz or .zst. A
 * reader thread cuts them into batches in input order (documents.h), workers encode these
 * (prepare_encode.h), and the calling thread writes them in order (token_writer.h). Under mpirun
 * each rank takes every size-th batch and writes its own blocks. The output is the same, byte for
 * byte, whatever the number of workers and ranks.
 *
 * What is written stays beside the output until it is whole, with a journal (prepare_journal.h):
 * the same call goes on where an interrupted one stood.
 */
#ifndef DATA_PREPARE_H
#define DATA_PREPARE_H

#include <stdbool.h>
#include <stdint.h>

#include "data/input_files.h"
#include "kernels/base/status.h"
#include "parallel/comm.h"

/* What becomes of a text that is no UTF-8, unless the tokenizer is bytes, which takes any. */
enum prepare_invalid { PREPARE_INVALID_SKIP, PREPARE_INVALID_REPLACE, PREPARE_INVALID_ERROR };

/* What was read, what came of it and what did not. All int64_t: they are added up, and kept in the
 * journal by these names. */
struct prepare_summary {
    int64_t files, documents, tokens, bytes; /* bytes: read, unpacked */
    int64_t text_bytes, text_tokens;         /* of documents from text: for bytes per token */
    int64_t skipped_empty, skipped_invalid;
    int64_t skipped_binary;     /* files with a NUL byte */
    int64_t skipped_long;       /* documents beyond most_document_bytes */
    int64_t skipped_broken;     /* lines that are no documents */
    int64_t skipped_unanswered; /* conversations without an answer, where only those count */
    int64_t skipped_by_size, skipped_by_name; /* files */
    int64_t duplicates;
    int64_t disk_bytes;                                 /* of the inputs, done */
    int64_t resumed, resumed_bytes, resumed_disk_bytes; /* of tokens and bytes: an earlier call's */
};
enum { PREPARE_COUNTS = sizeof(struct prepare_summary) / sizeof(int64_t) };

struct prepare_options {
    const char *tokenizer;     /* "bytes", "none", or the path of a tokenizer file */
    const char *eos;           /* the token that ends a document; NULL: as the tokenizer says */
    const char *chat_template; /* chat.h; NULL: conversations are refused */
    int64_t vocab_size;        /* required with none; 0: the tokenizer's */
    enum prepare_invalid invalid;
    bool skip_broken;            /* a line that is no document is left out, not an error */
    bool keep_binary;            /* files of folders with a NUL byte are texts too */
    bool count_prompt;           /* in conversations every token counts, not the answers alone */
    bool dedup;                  /* of equal documents the first stays */
    int64_t most_document_bytes; /* 0: PREPARE_MOST_DOCUMENT */
    struct input_filter filter;  /* its output is set by prepare_run */
    const char *output;
    char *const *inputs;
    int input_count;
    /* how, not what */
    int workers;            /* threads of this rank; 0: its share of the cores */
    struct comm *world;     /* borrowed; NULL: alone */
    double journal_seconds; /* between two notes of how far it got; 0: after every batch */
    bool (*stop)(void);     /* asked now and then: whether to end early; NULL: never */
    /* Called on rank 0 now and then; total: bytes of the inputs on disk. NULL: not. */
    void (*progress)(void *context, const struct prepare_summary *done, int64_t total);
    void (*note)(void *context, const char *line); /* what the user should know, on any rank */
    void *context;
};

static const int64_t PREPARE_MOST_DOCUMENT = (int64_t)1 << 28;

/* Collective over options->world. Each text file is a document that ends with eos; so is each
 * "text" of a .jsonl. Given "tokens" (with optional "loss_mask") are stored exactly. A conversation
 * ends as its template says. A loss mask is stored where any document has one.
 * Errors: STATUS_USAGE, STATUS_DATA (file:line: why): nothing is left behind; STATUS_IO,
 * STATUS_RESOURCE, and STATUS_PREEMPTED after a stop: the same call goes on. */
enum status prepare_run(const struct prepare_options *options, struct prepare_summary *summary)
    __attribute__((warn_unused_result));

#endif
