#include "data/token_writer.h"

#include <assert.h>
#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/token_store.h"
#include "kernels/base/h5_image.h"
#include "kernels/base/io_queue.h"

enum { MAX_PATH = 4096, PIECE = 1 << 20 };
/* Pieces of tokens on their way to the disk, and ends of documents held back meanwhile. */
enum { QUEUE_BYTES = 1 << 24, QUEUE_DEPTH = 4, MOST_ENDS = 1 << 16 };
enum { TOKENS, DOCUMENT_OFFSETS, LOSS_MASK, TOKENIZER_FILE, DATASETS };

/* Where the tokens begin in the file: where HDF5 puts the first dataset of lay_out. Files too small
 * for that are copied once more. */
static const int64_t BASE = 4096;

const char *const token_writer_suffix[TOKEN_WRITER_NAMES] = {
    "",         ".tmp",         ".offsets.tmp", ".mask.tmp", ".layout.tmp", ".hashes.tmp",
    ".journal", ".journal.tmp", ".lock"};
enum { FILE_TOKENS, FILE_ENDS, FILE_MASK, FILE_LAYOUT, FILES };

struct token_writer {
    struct token_writer_options options;
    char path[MAX_PATH], names[FILES][MAX_PATH];
    /* of FILE_TOKENS: the file in making; of FILE_ENDS: int64, where each document ends; of
     * FILE_MASK: 1 where a token does not count, so that what was never written counts */
    struct io_file file[3];
    struct token_position end;
    bool masked;
    int width;
    /* Past the page cache, where the one process writes one block behind the other: a thread moves
     * pieces of FILE_TOKENS, each to a multiple of IO_ALIGNMENT. What goes to the other files waits
     * until it has moved them, so that operations have the same order in every run. */
    struct io_queue queue;
    bool queued;            /* there is one; else blocks are written as they come */
    struct io_job *filling; /* the queue's; NULL: none is begun. bytes: as far as it is filled */
    int64_t *ends;          /* [MOST_ENDS] owned: for FILE_ENDS */
    int64_t tokens_at, ends_at, ends_count;
};

int token_writer_width(int64_t vocab_size)
{
    return vocab_size <= 65536 ? 2 : 4;
}

enum status token_writer_folder(const char *path)
{
    char folder[MAX_PATH];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash == NULL || slash == folder) {
        return STATUS_OK;
    }
    *slash = '\0';
    return io_make_dir(folder);
}

static size_t piece_bytes(const struct token_writer *writer)
{
    return writer->options.piece_bytes > 0 ? writer->options.piece_bytes : QUEUE_BYTES;
}

static enum status open_tokens(struct token_writer *writer)
{
    struct io_file *file = &writer->file[FILE_TOKENS];
    const char *name = writer->names[FILE_TOKENS];
    if (writer->options.keep || writer->options.shared) {
        return (writer->options.keep ? io_open_write : io_create)(file, name);
    }
    TRY(io_create_direct(file, name));
    writer->queued = true;
    writer->tokens_at = BASE;
    writer->ends = malloc(MOST_ENDS * sizeof *writer->ends);
    TRY(io_queue_open(&writer->queue, piece_bytes(writer), QUEUE_DEPTH));
    return writer->ends != NULL
               ? STATUS_OK
               : status_fail(STATUS_RESOURCE, "out of memory to write %s", writer->path);
}

/* There is a job to fill. */
static enum status begin_piece(struct token_writer *writer)
{
    if (writer->filling == NULL) {
        TRY(io_queue_next(&writer->queue, &writer->filling));
        writer->filling->file = &writer->file[FILE_TOKENS];
        writer->filling->write = true;
        writer->filling->offset = writer->tokens_at;
        writer->filling->bytes = 0;
    }
    return STATUS_OK;
}

/* The first `bytes` of the job count from now on as done with. */
static void submit_piece(struct token_writer *writer, size_t bytes)
{
    writer->tokens_at += (int64_t)bytes;
    writer->filling = NULL;
    io_queue_submit(&writer->queue);
}

/* Waits until the disk has what is on its way; what it could not take is an error from then on. */
static enum status settle(struct token_writer *writer)
{
    if (!writer->queued) {
        return STATUS_OK;
    }
    const enum status status = io_queue_finish(&writer->queue);
    return status == STATUS_OK || strstr(status_message(), writer->path) != NULL
               ? status
               : status_fail(status, "%s: %s", writer->path, status_message());
}

static enum status write_ends(struct token_writer *writer)
{
    const int64_t count = writer->ends_count, size = (int64_t)sizeof *writer->ends;
    TRY(settle(writer));
    if (count > 0) {
        TRY(io_pwrite(&writer->file[FILE_ENDS], writer->ends, (size_t)(count * size),
                      writer->ends_at * size));
    }
    writer->ends_at += count;
    writer->ends_count = 0;
    return STATUS_OK;
}

/* Writes what is held back. Tokens are filled up to a multiple of IO_ALIGNMENT; what is not a whole
 * one stays, and is written again. */
static enum status write_pending(struct token_writer *writer)
{
    struct io_job *job = writer->filling;
    char last[IO_ALIGNMENT] = {0};
    if (!writer->queued) {
        return STATUS_OK;
    }
    if (job != NULL && job->bytes > 0) {
        const size_t rest = job->bytes % IO_ALIGNMENT, whole = job->bytes - rest;
        memcpy(last, job->buffer + whole, rest);
        if (rest > 0) {
            memcpy(job->buffer + whole, last, sizeof last);
            job->bytes = whole + sizeof last;
        }
        submit_piece(writer, whole);
        TRY(begin_piece(writer));
        memcpy(writer->filling->buffer, last, rest);
        writer->filling->bytes = rest;
    }
    return write_ends(writer);
}

/* Bytes for a place in FILE_TOKENS. */
static enum status put_tokens(struct token_writer *writer, int64_t at, const void *data,
                              size_t bytes)
{
    if (!writer->queued) {
        return bytes > 0 ? io_pwrite(&writer->file[FILE_TOKENS], data, bytes, at) : STATUS_OK;
    }
    for (const char *from = data; bytes > 0;) {
        TRY(begin_piece(writer));
        struct io_job *job = writer->filling;
        const size_t room = piece_bytes(writer) - job->bytes, piece = bytes < room ? bytes : room;
        assert(from != data || at == writer->tokens_at + (int64_t)job->bytes);
        memcpy(job->buffer + job->bytes, from, piece);
        job->bytes += piece;
        from += piece;
        bytes -= piece;
        if (piece == room) {
            submit_piece(writer, job->bytes);
        }
    }
    return STATUS_OK;
}

enum status token_writer_open(struct token_writer **out, const char *path,
                              const struct token_writer_options *options)
{
    struct token_writer *writer = calloc(1, sizeof *writer);
    *out = writer;
    if (writer == NULL || strlen(path) + 16 > MAX_PATH) {
        return status_fail(STATUS_RESOURCE, "%s: out of memory, or the name is too long", path);
    }
    writer->options = *options;
    writer->width = token_writer_width(options->vocab_size);
    writer->masked = options->loss_mask;
    snprintf(writer->path, sizeof writer->path, "%s", path);
    for (int i = 0; i < FILES; i++) {
        snprintf(writer->names[i], MAX_PATH, "%.4000s%s", path, token_writer_suffix[i + 1]);
    }
    for (int i = 0; i < 3; i++) {
        writer->file[i].fd = -1;
    }
    TRY(token_writer_folder(path));
    for (int i = FILE_ENDS; i <= FILE_MASK; i++) {
        TRY((options->keep ? io_open_write : io_create)(&writer->file[i], writer->names[i]));
    }
    return open_tokens(writer);
}

/* Ends of documents that are held back until there are many. */
static enum status hold_ends(struct token_writer *writer, struct token_position at,
                             const struct token_block *block)
{
    int64_t end = at.tokens;
    assert(at.documents == writer->ends_at + writer->ends_count);
    for (int64_t i = 0; i < block->documents; i++) {
        end += block->lengths[i];
        writer->ends[writer->ends_count++] = end;
        if (writer->ends_count == MOST_ENDS) {
            TRY(write_ends(writer));
        }
    }
    return STATUS_OK;
}

static enum status put_ends(struct token_writer *writer, struct token_position at,
                            const struct token_block *block)
{
    if (writer->queued) {
        return hold_ends(writer, at, block);
    }
    int64_t ends[4096], end = at.tokens;
    for (int64_t done = 0; done < block->documents;) {
        const int64_t left = block->documents - done, piece = left < 4096 ? left : 4096;
        for (int64_t i = 0; i < piece; i++) {
            end += block->lengths[done + i];
            ends[i] = end;
        }
        TRY(io_pwrite(&writer->file[FILE_ENDS], ends, (size_t)piece * sizeof *ends,
                      (at.documents + done) * (int64_t)sizeof *ends));
        done += piece;
    }
    return STATUS_OK;
}

static enum status put_mask(struct token_writer *writer, int64_t at, const uint8_t *mask,
                            int64_t count)
{
    uint8_t piece[1 << 14];
    for (int64_t done = 0; done < count;) {
        const int64_t left = count - done, size = left < 1 << 14 ? left : 1 << 14;
        for (int64_t i = 0; i < size; i++) {
            piece[i] = mask[done + i] ^ 1;
        }
        TRY(io_pwrite(&writer->file[FILE_MASK], piece, (size_t)size, at + done));
        done += size;
    }
    return STATUS_OK;
}

enum status token_writer_put(struct token_writer *writer, struct token_position at,
                             const struct token_block *block)
{
    TRY(put_tokens(writer, BASE + at.tokens * writer->width, block->tokens,
                   (size_t)(block->count * writer->width)));
    TRY(put_ends(writer, at, block));
    if (block->mask == NULL) {
        return STATUS_OK;
    }
    TRY(settle(writer));
    return put_mask(writer, at.tokens, block->mask, block->count);
}

enum status token_writer_cut(struct token_writer *writer, struct token_position end)
{
    const int64_t bytes[3] = {BASE + end.tokens * writer->width,
                              end.documents * (int64_t)sizeof(int64_t), end.tokens};
    for (int i = 0; i < 3; i++) {
        int64_t there = 0;
        TRY(io_size(&writer->file[i], &there));
        if (i != FILE_MASK && end.tokens > 0 && there < bytes[i]) {
            return status_fail(STATUS_DATA, "%s: ends at byte %lld, before %lld", writer->names[i],
                               (long long)there, (long long)bytes[i]);
        }
        TRY(io_truncate(&writer->file[i], bytes[i]));
    }
    writer->end = end;
    return STATUS_OK;
}

void token_writer_reach(struct token_writer *writer, struct token_position end, bool masked)
{
    writer->end = end;
    writer->masked = masked || writer->options.loss_mask;
}

enum status token_writer_settle(struct token_writer *writer)
{
    return settle(writer);
}

enum status token_writer_sync(struct token_writer *writer)
{
    TRY(write_pending(writer));
    for (int i = 0; i < 3; i++) {
        TRY(io_sync(&writer->file[i]));
    }
    return STATUS_OK;
}

enum status token_writer_add(struct token_writer *writer, const uint32_t *ids, const uint8_t *mask,
                             int64_t count)
{
    uint16_t narrow[4096];
    struct token_position at = writer->end;
    int64_t length = 0;
    const struct token_block none = {.lengths = &count, .documents = 1};
    for (int64_t done = 0; done < count; done += length) {
        length = count - done < 4096 ? count - done : 4096;
        for (int64_t i = 0; i < length; i++) {
            if (ids[done + i] >= writer->options.vocab_size) {
                return status_fail(STATUS_DATA, "token id %u is not below the vocabulary size %lld",
                                   ids[done + i], (long long)writer->options.vocab_size);
            }
            narrow[i] = (uint16_t)ids[done + i];
        }
        const struct token_block piece = {.tokens = writer->width == 2 ? (const void *)narrow
                                                                       : ids + done,
                                          .mask = mask != NULL ? mask + done : NULL,
                                          .count = length};
        TRY(token_writer_put(writer, at, &piece));
        at.tokens += length;
    }
    TRY(put_ends(writer, writer->end, &none));
    at.documents++;
    writer->end = at;
    return STATUS_OK;
}

/* An empty contiguous dataset with its space reserved; returns its offset. */
static int64_t reserve(hid_t file, const char *name, hid_t type, int64_t count)
{
    const hsize_t dim = (hsize_t)count;
    const hid_t space = H5Screate_simple(1, &dim, NULL), plist = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_fill_time(plist, H5D_FILL_TIME_NEVER);
    H5Pset_alloc_time(plist, H5D_ALLOC_TIME_EARLY);
    H5Pset_obj_track_times(plist, false);
    const hid_t set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, plist, H5P_DEFAULT);
    const haddr_t offset = set >= 0 ? H5Dget_offset(set) : HADDR_UNDEF;
    H5Dclose(set);
    H5Pclose(plist);
    H5Sclose(space);
    return offset == HADDR_UNDEF ? -1 : (int64_t)offset;
}

static void attribute(hid_t file, const char *name, hid_t type, const void *value)
{
    const hid_t space = H5Screate(H5S_SCALAR),
                set = H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    H5Awrite(set, type, value);
    H5Aclose(set);
    H5Sclose(space);
}

static void text_attribute(hid_t file, const char *name, const char *value)
{
    const hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, strlen(value) + 1);
    attribute(file, name, type, value);
    H5Tclose(type);
}

/* What HDF5 makes of the datasets' shapes and the attributes: all of the file but the payload. */
static enum status lay_out(const struct token_writer *writer, struct h5_image *image,
                           int64_t offset[DATASETS])
{
    const int64_t version = TOKEN_FORMAT_VERSION;
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);
    H5Pset_alignment(access, 65536, 4096);
    const hid_t root = H5Pcreate(H5P_FILE_CREATE);
    H5Pset_obj_track_times(root, false); /* the same input is the same bytes */
    const enum status status = h5_image_access(access, image);
    const hid_t file =
        status == STATUS_OK ? H5Fcreate(writer->path, H5F_ACC_TRUNC, root, access) : -1;
    H5Pclose(root);
    H5Pclose(access);
    TRY(status);
    if (file < 0) {
        return status_fail(STATUS_RESOURCE, "%s: HDF5 cannot begin it: out of memory?",
                           writer->path);
    }
    offset[TOKENS] = reserve(file, "tokens", writer->width == 2 ? H5T_STD_U16LE : H5T_STD_U32LE,
                             writer->end.tokens);
    offset[DOCUMENT_OFFSETS] =
        reserve(file, "document_offsets", H5T_STD_I64LE, writer->end.documents + 1);
    offset[LOSS_MASK] =
        writer->masked ? reserve(file, "loss_mask", H5T_STD_U8LE, writer->end.tokens) : 0;
    offset[TOKENIZER_FILE] = writer->options.tokenizer_file_bytes > 0
                                 ? reserve(file, "tokenizer_file", H5T_STD_U8LE,
                                           (int64_t)writer->options.tokenizer_file_bytes)
                                 : 0;
    attribute(file, "format_version", H5T_STD_I64LE, &version);
    attribute(file, "vocab_size", H5T_STD_I64LE, &writer->options.vocab_size);
    attribute(file, "eos_id", H5T_STD_I64LE, &writer->options.eos_id);
    text_attribute(file, "tokenizer", writer->options.tokenizer);
    text_attribute(file, "tokenizer_hash", writer->options.tokenizer_hash);
    bool good = H5Fclose(file) >= 0 && !image->failed;
    for (int i = 0; i < DATASETS; i++) {
        good = good && offset[i] >= 0;
    }
    return good ? STATUS_OK
                : status_fail(STATUS_RESOURCE, "%s: HDF5 could not lay it out: out of memory?",
                              writer->path);
}

/* bytes of `from` at from_at, each ^ flip, to `to` at to_at. */
static enum status copy(struct io_file *to, int64_t to_at, struct io_file *from, int64_t from_at,
                        int64_t bytes, char flip)
{
    char *piece = malloc(PIECE);
    enum status status = piece != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory");
    for (int64_t at = 0; at < bytes && status == STATUS_OK; at += PIECE) {
        const size_t size = (size_t)(bytes - at < PIECE ? bytes - at : PIECE);
        status = io_pread(from, piece, size, from_at + at);
        for (size_t i = 0; flip != 0 && i < size; i++) {
            piece[i] ^= flip;
        }
        status = status == STATUS_OK ? io_pwrite(to, piece, size, to_at + at) : status;
    }
    free(piece);
    return status;
}

static enum status write_image(struct io_file *to, const struct h5_image *image, int64_t begin,
                               int64_t end)
{
    char piece[1 << 14];
    for (int64_t at = begin; at < end; at += (int64_t)sizeof piece) {
        const int64_t left = end - at;
        const size_t some = left < (int64_t)sizeof piece ? (size_t)left : sizeof piece;
        h5_image_read(image, at, piece, some);
        TRY(io_pwrite(to, piece, some, at));
    }
    return STATUS_OK;
}

/* What lies beside the datasets: HDF5's own. */
static enum status write_around(struct io_file *to, const struct h5_image *image,
                                const int64_t offset[DATASETS], const int64_t bytes[DATASETS])
{
    for (int64_t at = 0; at < image->bytes;) {
        int64_t next = image->bytes, after = image->bytes; /* the dataset at or behind `at` */
        for (int i = 0; i < DATASETS; i++) {
            if (bytes[i] > 0 && offset[i] >= at && offset[i] < next) {
                next = offset[i];
                after = offset[i] + bytes[i];
            }
        }
        TRY(write_image(to, image, at, next));
        at = after;
    }
    return io_truncate(to, image->bytes);
}

static enum status fill(struct token_writer *writer, struct io_file *to,
                        const int64_t offset[DATASETS], const int64_t bytes[DATASETS])
{
    static const int64_t first = 0;
    TRY(io_pwrite(to, &first, sizeof first, offset[DOCUMENT_OFFSETS]));
    TRY(copy(to, offset[DOCUMENT_OFFSETS] + (int64_t)sizeof first, &writer->file[FILE_ENDS], 0,
             bytes[DOCUMENT_OFFSETS] - (int64_t)sizeof first, 0));
    if (writer->masked) {
        TRY(io_truncate(&writer->file[FILE_MASK], writer->end.tokens));
        TRY(copy(to, offset[LOSS_MASK], &writer->file[FILE_MASK], 0, bytes[LOSS_MASK], 1));
    }
    if (bytes[TOKENIZER_FILE] > 0) {
        TRY(io_pwrite(to, writer->options.tokenizer_file, (size_t)bytes[TOKENIZER_FILE],
                      offset[TOKENIZER_FILE]));
    }
    return io_sync(to);
}

static enum status fill_all(struct token_writer *writer, struct io_file *to,
                            const struct h5_image *image, const int64_t offset[DATASETS])
{
    const int64_t bytes[DATASETS] = {
        writer->end.tokens * writer->width, (writer->end.documents + 1) * (int64_t)sizeof(int64_t),
        writer->masked ? writer->end.tokens : 0, (int64_t)writer->options.tokenizer_file_bytes};
    struct io_file *tokens = &writer->file[FILE_TOKENS];
    TRY(write_around(to, image, offset, bytes));
    if (to != tokens) {
        TRY(copy(to, offset[TOKENS], tokens, BASE, bytes[TOKENS], 0));
    }
    return fill(writer, to, offset, bytes);
}

/* Makes the HDF5 file, of the file with the tokens or, where HDF5 has these elsewhere, of one more:
 * *whole is its name. */
static enum status assemble(struct token_writer *writer, const char **whole)
{
    int64_t offset[DATASETS] = {0};
    struct h5_image image = {0};
    struct io_file more = {.fd = -1}, *to = &writer->file[FILE_TOKENS];
    enum status status = lay_out(writer, &image, offset);
    const bool in_place = offset[TOKENS] == BASE;
    *whole = writer->names[in_place ? FILE_TOKENS : FILE_LAYOUT];
    if (status == STATUS_OK && !in_place) {
        to = &more;
        status = io_create(to, *whole);
    }
    status = status == STATUS_OK ? fill_all(writer, to, &image, offset) : status;
    h5_image_free(&image);
    const enum status closed = more.path != NULL ? io_close(&more) : STATUS_OK;
    return status == STATUS_OK ? closed : status;
}

enum status token_writer_publish(struct token_writer *writer)
{
    const char *whole = NULL;
    if (writer->end.tokens == 0) {
        return status_fail(STATUS_DATA, "%s: the inputs hold no tokens", writer->path);
    }
    TRY(write_pending(writer));
    enum status status = assemble(writer, &whole);
    status = status == STATUS_OK ? io_rename(whole, writer->path) : status;
    if (status != STATUS_OK) {
        io_discard(writer->names[FILE_LAYOUT]);
    }
    return status;
}

void token_writer_leave(struct token_writer *writer)
{
    if (writer != NULL) {
        io_queue_close(&writer->queue);
    }
    for (int i = 0; writer != NULL && i < 3; i++) {
        const enum status ignored = io_close(&writer->file[i]);
        (void)ignored;
    }
    if (writer != NULL) {
        free(writer->ends);
    }
    free(writer);
}

static void remove_files(const struct token_writer *writer)
{
    for (int i = 0; i < FILES; i++) {
        io_discard(writer->names[i]);
    }
}

void token_writer_abandon(struct token_writer *writer)
{
    if (writer != NULL) {
        remove_files(writer);
    }
    token_writer_leave(writer);
}

enum status token_writer_close(struct token_writer *writer)
{
    const enum status status = token_writer_publish(writer);
    token_writer_abandon(writer);
    return status;
}
