/* prepare: text files, folders and .jsonl into a token file. Streaming, in input order (folders:
 * sorted by path; links to folders in them are not followed). */
#ifndef DATA_PREPARE_H
#define DATA_PREPARE_H

#include <stdint.h>

#include "kernels/base/status.h"

/* What becomes of a text that is no UTF-8, unless the tokenizer is bytes, which takes any. */
enum prepare_invalid { PREPARE_INVALID_SKIP, PREPARE_INVALID_REPLACE, PREPARE_INVALID_ERROR };

struct prepare_options {
    const char *tokenizer; /* "bytes", "none", or the path of a tokenizer file */
    const char *eos;       /* the token that ends a document; NULL: as the tokenizer says */
    int64_t vocab_size;    /* required with none; 0: the tokenizer's */
    enum prepare_invalid invalid;
    const char *output;
    char *const *inputs;
    int input_count;
};

struct prepare_summary {
    int64_t files, documents, tokens, bytes, skipped_empty, skipped_invalid;
};

/* Each text file is a document that ends with eos; so is each "text" of a .jsonl. Given "tokens"
 * (with optional "loss_mask") are stored exactly. Errors: STATUS_USAGE, STATUS_DATA (file:line:
 * why), STATUS_IO. Nothing is left behind on error. */
enum status prepare_run(const struct prepare_options *options, struct prepare_summary *summary)
    __attribute__((warn_unused_result));

#endif
