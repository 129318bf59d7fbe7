/* documents: the documents of a list of files, in order, in batches of about a MiB.
 *
 * Which documents make batch b depends on the files alone, so that batches can be given out to any
 * number of processes and threads and a later run can begin at any of them. A file that is not
 * packed is not read where its batches are another's; a packed one is unpacked from its beginning.
 *
 * Where a document may come in pieces, a text of more than a batch does, a batch each: what reads,
 * encodes and writes them works side by side, on what the caches hold. Whether the text is binary
 * comes with the first piece, for which all of it is looked at.
 */
#ifndef DATA_DOCUMENTS_H
#define DATA_DOCUMENTS_H

#include <stdbool.h>

#include "data/input_files.h"
#include "data/lists.h"

struct document {
    size_t at, bytes; /* in the batch's text; bytes is 0 when it is too long */
    int64_t file;     /* index in the list */
    int64_t offset;   /* of a line, or a piece: in its file, unpacked */
    int64_t line;     /* from 1; 0: not known without counting */
    bool too_long;
    /* Of a piece of a text, which has a batch to itself: more of it stands in the batches before,
     * behind. binary, of the first one: there is a NUL byte anywhere in the text. */
    bool continues, goes_on, binary;
};

/* A zeroed one is empty; one serves for batch after batch. */
struct document_batch {
    int64_t index;
    bool lines; /* of .jsonl: blank ones are no documents */
    struct byte_list text;
    struct document *document; /* [count] owned */
    int64_t count, room;
    int64_t input_bytes; /* read for it, unpacked */
    int64_t disk_bytes;  /* the same as they lie on the disk: for progress */
};

enum { DOCUMENTS_BATCH = 1 << 20 };

/* Where one reader stands. */
struct documents {
    const struct input_files *files; /* borrowed */
    int64_t most_bytes;              /* of a document; longer ones are marked, and not kept */
    bool pieces;                     /* long texts come in pieces */
    bool find_binary;                /* of a text in pieces: look whether it is */
    int64_t first, stride, index;    /* batches first, first + stride, ... are ours; the next */
    int64_t file, start; /* of the next batch; start: in a file of lines, or of pieces, unpacked */
    /* the open file */
    struct unpack unpack;
    int64_t open_file; /* -1: none */
    char *piece;       /* [UNPACK_PIECE] owned */
    size_t piece_at, piece_count;
    int64_t position; /* of piece[piece_at] */
    int64_t line;     /* the number of the line that begins at position; 0: not known */
};

/* Local. Set `pieces` and `find_binary` behind it, where they are wanted. Errors: STATUS_RESOURCE.
 * Close it either way. */
enum status documents_open(struct documents *documents, const struct input_files *files,
                           int64_t most_bytes, int64_t first, int64_t stride)
    __attribute__((warn_unused_result));
/* Local. The next batch of ours; *more false: there is none. Errors: STATUS_IO; STATUS_DATA: a
 * packed file is damaged, or a file has changed since it was listed; STATUS_RESOURCE. */
enum status documents_next(struct documents *documents, struct document_batch *batch, bool *more)
    __attribute__((warn_unused_result));
void documents_close(struct documents *documents); /* accepts a zeroed one */
void document_batch_free(struct document_batch *batch);

/* Local. "path" or "path:line", for messages; may read the file up to there. */
void document_where(const struct input_files *files, const struct document *document, char *out,
                    size_t room);

#endif
