/* prepare_encode: what a worker of prepare does: the documents of a batch become token ids, or are
 * left out and counted.
 */
#ifndef DATA_PREPARE_ENCODE_H
#define DATA_PREPARE_ENCODE_H

#include "data/document_line.h"
#include "data/documents.h"
#include "data/prepare.h"
#include "data/token_writer.h"
#include "kernels/base/hash.h"

/* What all workers share; read-only once open. */
struct prepare_rules {
    const struct prepare_options *options;
    const struct input_files *files;
    struct tokenizer tokenizer; /* zeroed where text is not allowed */
    struct chat chat;           /* zeroed without a template */
    bool text_allowed;
    int64_t vocab_size; /* of the output */
    int width;          /* bytes of a token there */
};

/* A batch encoded. A zeroed one is empty; one serves for batch after batch. */
struct prepare_block {
    struct byte_list tokens; /* in the width of the output */
    struct byte_list mask;   /* as far as the last document that has one; what follows counts */
    bool masked;             /* any document has a mask */
    /* It is a piece of one document (documents.h); binary: the first of one that is left out. */
    bool continues, goes_on, binary;
    int64_t *lengths;       /* [documents] owned */
    struct hash128 *hashes; /* [documents] owned; with options->dedup */
    int64_t documents, room;
    struct prepare_summary counts; /* of this batch */
    struct document notes[4];      /* the first that are too long */
    int note_count;
};

/* What one worker needs. */
struct prepare_worker {
    const struct prepare_rules *rules; /* borrowed */
    struct prepare_pipeline *pipeline; /* borrowed: whose batches; NULL: called alone */
    struct encoder encoder;
    struct document_line line;
    struct id_list ids;
    struct byte_list mask, clean; /* of a document; a text made valid */
    bool refused;                 /* what failed is an error though broken lines are skipped */
};

/* Local. The tokenizer, the template, and what of the request does not go with them. Errors:
 * STATUS_USAGE, and those of tokenizer_open. Close either way. */
enum status prepare_rules_open(struct prepare_rules *rules, const struct prepare_options *options)
    __attribute__((warn_unused_result));
void prepare_rules_close(struct prepare_rules *rules);
/* Whether a long text may be encoded in pieces: what becomes of a byte depends on no other, and
 * nobody asks for a hash of the whole. */
bool prepare_rules_pieces(const struct prepare_rules *rules);

enum status prepare_worker_open(struct prepare_worker *worker, const struct prepare_rules *rules)
    __attribute__((warn_unused_result));
void prepare_worker_close(struct prepare_worker *worker); /* accepts a zeroed one */

/* Local. `block` is emptied first. Errors: STATUS_DATA: place and reason; STATUS_RESOURCE. */
enum status prepare_encode(struct prepare_worker *worker, const struct document_batch *batch,
                           struct prepare_block *block) __attribute__((warn_unused_result));
/* Local. Takes out the documents that are not kept (keep[documents]), and counts them as doubles.
 */
void prepare_block_keep(struct prepare_block *block, const bool *keep, int width);
void prepare_block_free(struct prepare_block *block); /* accepts a zeroed one */

#endif
