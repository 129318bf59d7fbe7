#include "data/documents.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum status documents_open(struct documents *documents, const struct input_files *files,
                           int64_t most_bytes, int64_t first, int64_t stride)
{
    *documents = (struct documents){.files = files,
                                    .most_bytes = most_bytes,
                                    .first = first,
                                    .stride = stride,
                                    .open_file = -1};
    documents->piece = malloc(UNPACK_PIECE);
    return documents->piece != NULL ? STATUS_OK
                                    : status_fail(STATUS_RESOURCE, "out of memory to read files");
}

static void close_file(struct documents *documents)
{
    unpack_close(&documents->unpack);
    documents->open_file = -1;
    documents->piece_at = documents->piece_count = 0;
}

void documents_close(struct documents *documents)
{
    close_file(documents);
    free(documents->piece);
    *documents = (struct documents){.open_file = -1};
}

void document_batch_free(struct document_batch *batch)
{
    byte_list_free(&batch->text);
    free(batch->document);
    *batch = (struct document_batch){0};
}

static enum status open_file(struct documents *documents, int64_t index)
{
    const struct input_file *file = &documents->files->file[index];
    close_file(documents);
    TRY(unpack_open(&documents->unpack, file->path, file->packing));
    documents->open_file = index;
    documents->position = 0;
    documents->line = 1;
    return documents->unpack.size == file->bytes
               ? STATUS_OK
               : status_fail(STATUS_DATA, "%s: changed from %lld to %lld bytes while prepare ran",
                             file->path, (long long)file->bytes, (long long)documents->unpack.size);
}

static enum status add_document(struct document_batch *batch, const struct document *document)
{
    if (batch->count == batch->room) {
        const int64_t room = batch->room > 0 ? 2 * batch->room : 64;
        struct document *grown = realloc(batch->document, (size_t)room * sizeof *grown);
        if (grown == NULL) {
            return status_fail(STATUS_RESOURCE, "out of memory for %lld documents",
                               (long long)room);
        }
        batch->document = grown;
        batch->room = room;
    }
    batch->document[batch->count++] = *document;
    return STATUS_OK;
}

/* --- files that are one document --- */

/* A whole file, not packed, straight into the batch. */
static enum status read_text(struct documents *documents, int64_t index,
                             struct document_batch *batch)
{
    const int64_t bytes = documents->files->file[index].bytes;
    struct document document = {.at = batch->text.count, .file = index};
    document.too_long = bytes > documents->most_bytes;
    if (!document.too_long) {
        size_t got = 0;
        TRY(byte_list_reserve(&batch->text, (size_t)bytes + 1));
        TRY(open_file(documents, index));
        TRY(unpack_read(&documents->unpack, batch->text.data + batch->text.count, (size_t)bytes,
                        &got));
        close_file(documents);
        document.bytes = got;
        batch->text.count += got;
    }
    batch->input_bytes += (int64_t)document.bytes;
    batch->disk_bytes += bytes;
    return add_document(batch, &document);
}

/* Whether there is a NUL byte in the open file; `scratch` is used up, and the file stands where it
 * stood. */
static enum status look_for_nul(struct documents *documents, struct byte_list *scratch, bool *found)
{
    enum { SOME = 1 << 18 }; /* what a core's cache holds */
    const int64_t stood = documents->unpack.at;
    TRY(byte_list_reserve(scratch, SOME));
    size_t got = 0;
    documents->unpack.at = 0;
    do {
        TRY(unpack_read(&documents->unpack, scratch->data, SOME, &got));
        *found = memchr(scratch->data, 0, got) != NULL;
    } while (got > 0 && !*found);
    documents->unpack.at = stood;
    return STATUS_OK;
}

/* The next piece of a file that is one long text. */
static enum status read_piece(struct documents *documents, struct document_batch *batch)
{
    const struct input_file *file = &documents->files->file[documents->file];
    const int64_t start = documents->start, left = file->bytes - start,
                  bytes = left < DOCUMENTS_BATCH ? left : DOCUMENTS_BATCH;
    struct document document = {
        .file = documents->file, .offset = start, .continues = start > 0, .goes_on = bytes < left};
    if (batch != NULL) {
        if (documents->open_file != documents->file) {
            TRY(open_file(documents, documents->file));
        }
        if (start == 0 && documents->find_binary && !file->named) {
            TRY(look_for_nul(documents, &batch->text, &document.binary));
        }
        documents->unpack.at = start;
        TRY(byte_list_reserve(&batch->text, (size_t)bytes));
        TRY(unpack_read(&documents->unpack, batch->text.data, (size_t)bytes, &document.bytes));
        batch->text.count = document.bytes;
        batch->input_bytes = (int64_t)document.bytes;
        batch->disk_bytes = bytes;
        TRY(add_document(batch, &document));
    }
    documents->start = document.goes_on ? start + bytes : 0;
    if (!document.goes_on) {
        documents->file++;
        close_file(documents);
    }
    return STATUS_OK;
}

/* As many of them as fit, at least one. */
static enum status read_texts(struct documents *documents, struct document_batch *batch)
{
    const struct input_files *files = documents->files;
    int64_t bytes = files->file[documents->file].bytes;
    if (documents->pieces && bytes > DOCUMENTS_BATCH && bytes <= documents->most_bytes) {
        return read_piece(documents, batch);
    }
    bytes = 0;
    do {
        const int64_t index = documents->file++;
        bytes += files->file[index].bytes;
        if (batch != NULL) {
            TRY(read_text(documents, index, batch));
        }
    } while (documents->file < files->count && !files->file[documents->file].lines &&
             files->file[documents->file].packing == PACKING_NONE &&
             bytes + files->file[documents->file].bytes <= DOCUMENTS_BATCH);
    return STATUS_OK;
}

/* --- files of lines, and packed ones --- */

/* There is something in the piece, or the file has ended. */
static enum status fill_piece(struct documents *documents)
{
    if (documents->piece_at < documents->piece_count) {
        return STATUS_OK;
    }
    documents->piece_at = 0;
    return unpack_read(&documents->unpack, documents->piece, UNPACK_PIECE, &documents->piece_count);
}

static enum status take(struct documents *documents, struct document_batch *batch,
                        struct document *document, size_t bytes)
{
    const char *from = documents->piece + documents->piece_at;
    documents->piece_at += bytes;
    documents->position += (int64_t)bytes;
    if (batch == NULL) {
        return STATUS_OK;
    }
    batch->input_bytes += (int64_t)bytes;
    if (!document->too_long &&
        (int64_t)(batch->text.count - document->at + bytes) > documents->most_bytes) {
        document->too_long = true;
        batch->text.count = document->at;
    }
    return document->too_long ? STATUS_OK : byte_list_add(&batch->text, from, bytes);
}

/* A line with its end, or all there is. */
static enum status read_document(struct documents *documents, struct document_batch *batch,
                                 bool lines)
{
    struct document document = {.at = batch != NULL ? batch->text.count : 0,
                                .file = documents->open_file,
                                .offset = documents->position,
                                .line = documents->line};
    bool ended = false;
    do {
        TRY(fill_piece(documents));
        const size_t left = documents->piece_count - documents->piece_at;
        const char *from = documents->piece + documents->piece_at;
        const char *newline = lines && left > 0 ? memchr(from, '\n', left) : NULL;
        ended = newline != NULL || left == 0;
        TRY(take(documents, batch, &document,
                 newline != NULL ? (size_t)(newline - from) + 1 : left));
    } while (!ended);
    documents->line += documents->line > 0;
    if (batch == NULL) {
        return STATUS_OK;
    }
    document.bytes = batch->text.count - document.at;
    return add_document(batch, &document);
}

/* Documents that begin before `until`; *ended: the file has no more. */
static enum status read_until(struct documents *documents, struct document_batch *batch, bool lines,
                              int64_t until, bool *ended)
{
    TRY(fill_piece(documents));
    bool first = !lines; /* an empty file is one empty document, not an empty line */
    while (documents->position < until && (first || documents->piece_count > 0)) {
        TRY(read_document(documents, batch, lines));
        TRY(fill_piece(documents));
        first = false;
    }
    *ended = documents->piece_count == 0;
    return STATUS_OK;
}

/* To the first line that begins at `start` or behind it, in a file that is not packed; *found
 * false: none does within a batch. */
static enum status seek_line(struct documents *documents, int64_t index, int64_t start, bool *found)
{
    *found = true;
    if (documents->open_file == index && documents->position >= start) {
        return STATUS_OK; /* the batch before was ours: it ended with its last line */
    }
    TRY(open_file(documents, index));
    if (start == 0) {
        return STATUS_OK;
    }
    documents->unpack.at = documents->position = start - 1;
    documents->line = 0;
    const int64_t until = start + DOCUMENTS_BATCH;
    for (*found = false; !*found && documents->position < until;) {
        TRY(fill_piece(documents));
        const size_t left = documents->piece_count - documents->piece_at;
        const char *from = documents->piece + documents->piece_at,
                   *newline = left > 0 ? memchr(from, '\n', left) : NULL;
        *found = newline != NULL || left == 0;
        TRY(take(documents, NULL, NULL, newline != NULL ? (size_t)(newline - from) + 1 : left));
    }
    if (!*found) {
        close_file(documents); /* in the middle of a line */
    }
    return STATUS_OK;
}

/* Lines that begin in one piece of the file. */
static enum status read_lines(struct documents *documents, struct document_batch *batch)
{
    const int64_t index = documents->file, bytes = documents->files->file[index].bytes,
                  start = documents->start, end = start + DOCUMENTS_BATCH;
    if (batch != NULL) {
        bool found = false, ended = false;
        batch->disk_bytes = (end < bytes ? end : bytes) - start;
        TRY(seek_line(documents, index, start, &found));
        if (found) {
            TRY(read_until(documents, batch, true, end, &ended));
        }
    }
    documents->start = end;
    if (end >= bytes) {
        documents->start = 0;
        documents->file++;
        close_file(documents);
    }
    return STATUS_OK;
}

/* The next lines of a packed file, or the one document that it is. */
static enum status read_packed(struct documents *documents, struct document_batch *batch)
{
    const struct input_file *file = &documents->files->file[documents->file];
    if (documents->open_file != documents->file) {
        TRY(open_file(documents, documents->file));
    }
    const int64_t before = documents->unpack.at;
    bool ended = false;
    TRY(read_until(documents, batch, file->lines, documents->position + DOCUMENTS_BATCH, &ended));
    if (batch != NULL) {
        batch->disk_bytes = documents->unpack.at - before;
    }
    if (ended) {
        close_file(documents);
        documents->file++;
    }
    return STATUS_OK;
}

enum status documents_next(struct documents *documents, struct document_batch *batch, bool *more)
{
    const struct input_files *files = documents->files;
    bool ours = false;
    while (documents->file < files->count && !ours) {
        const struct input_file *file = &files->file[documents->file];
        const int64_t index = documents->index++, behind = index - documents->first;
        ours = behind >= 0 && behind % documents->stride == 0;
        batch->index = index;
        batch->lines = file->lines;
        batch->text.count = 0;
        batch->count = batch->input_bytes = batch->disk_bytes = 0;
        struct document_batch *into = ours ? batch : NULL;
        TRY(file->packing != PACKING_NONE ? read_packed(documents, into)
            : file->lines                 ? read_lines(documents, into)
                                          : read_texts(documents, into));
    }
    *more = ours;
    return STATUS_OK;
}

/* Lines before `offset`, plus one. */
static int64_t count_lines(const char *path, int64_t offset)
{
    char piece[1 << 14];
    int64_t lines = 1;
    FILE *file = fopen(path, "r");
    while (file != NULL && offset > 0) {
        const size_t want = offset < (int64_t)sizeof piece ? (size_t)offset : sizeof piece,
                     got = fread(piece, 1, want, file);
        for (size_t i = 0; i < got; i++) {
            lines += piece[i] == '\n';
        }
        offset = got == want ? offset - (int64_t)got : 0;
    }
    if (file != NULL) {
        fclose(file);
    }
    return lines;
}

void document_where(const struct input_files *files, const struct document *document, char *out,
                    size_t room)
{
    const struct input_file *file = &files->file[document->file];
    const int64_t line =
        document->line > 0 ? document->line : count_lines(file->path, document->offset);
    if (file->lines) {
        snprintf(out, room, "%s:%lld", file->path, (long long)line);
    } else {
        snprintf(out, room, "%s", file->path);
    }
}
