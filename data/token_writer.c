#include "data/token_writer.h"

#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/token_store.h"
#include "kernels/base/io.h"

enum { MAX_PATH = 4096, PIECE = 1 << 20 };
enum { TOKENS, DOCUMENT_OFFSETS, LOSS_MASK, TOKENIZER_FILE, DATASETS };

/* Tokens and mask are spooled beside the output until their number is known. */
struct token_writer {
    struct token_writer_options options;
    char path[MAX_PATH],
        names[3][MAX_PATH]; /* output; spools of tokens and mask; the file being made */
    struct io_file spool[2];
    int64_t *offsets, documents, room, tokens;
    int width;
};

enum status token_writer_open(struct token_writer **out, const char *path,
                              const struct token_writer_options *options)
{
    static const char *const suffix[3] = {".tokens.tmp", ".mask.tmp", ".tmp"};
    struct token_writer *writer = calloc(1, sizeof *writer);
    *out = writer;
    if (writer == NULL || strlen(path) + 16 > MAX_PATH) {
        return status_fail(STATUS_RESOURCE, "%s: out of memory, or the name is too long", path);
    }
    char folder[MAX_PATH];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash != NULL && slash != folder) {
        *slash = '\0';
        TRY(io_make_dir(folder));
    }
    writer->options = *options;
    writer->width = options->vocab_size <= 65536 ? 2 : 4;
    snprintf(writer->path, sizeof writer->path, "%s", path);
    for (int i = 0; i < 3; i++) {
        snprintf(writer->names[i], MAX_PATH, "%.4000s%s", path, suffix[i]);
    }
    writer->spool[0].fd = writer->spool[1].fd = -1;
    TRY(io_create(&writer->spool[0], writer->names[0]));
    return options->loss_mask ? io_create(&writer->spool[1], writer->names[1]) : STATUS_OK;
}

static enum status write_piece(struct token_writer *writer, const uint32_t *ids,
                               const uint8_t *mask, int64_t count)
{
    uint16_t narrow[4096];
    uint8_t ones[4096];
    memset(ones, 1, sizeof ones);
    for (int64_t at = 0; at < count; at += 4096) {
        const int64_t piece = count - at < 4096 ? count - at : 4096;
        for (int64_t i = 0; i < piece; i++) {
            if (ids[at + i] >= writer->options.vocab_size) {
                return status_fail(STATUS_DATA, "token id %u is not below the vocabulary size %lld",
                                   ids[at + i], (long long)writer->options.vocab_size);
            }
            narrow[i] = (uint16_t)ids[at + i];
        }
        TRY(io_write(&writer->spool[0], writer->width == 2 ? (const void *)narrow : ids + at,
                     (size_t)(piece * writer->width)));
        if (writer->options.loss_mask) {
            TRY(io_write(&writer->spool[1], mask != NULL ? mask + at : ones, (size_t)piece));
        }
    }
    return STATUS_OK;
}

enum status token_writer_add(struct token_writer *writer, const uint32_t *ids, const uint8_t *mask,
                             int64_t count)
{
    if (writer->documents + 2 > writer->room) {
        const int64_t room = writer->room > 0 ? 2 * writer->room : 1024;
        int64_t *grown = realloc(writer->offsets, (size_t)room * sizeof *grown);
        if (grown == NULL) {
            return status_fail(STATUS_RESOURCE, "out of memory for %lld documents",
                               (long long)room);
        }
        grown[0] = 0;
        writer->offsets = grown;
        writer->room = room;
    }
    TRY(write_piece(writer, ids, mask, count));
    writer->tokens += count;
    writer->offsets[++writer->documents] = writer->tokens;
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

static enum status lay_out(const struct token_writer *writer, int64_t offset[DATASETS])
{
    const int64_t version = TOKEN_FORMAT_VERSION;
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);
    H5Pset_alignment(access, 65536, 4096);
    const hid_t root = H5Pcreate(H5P_FILE_CREATE);
    H5Pset_obj_track_times(root, false); /* the same input is the same bytes */
    const hid_t file = H5Fcreate(writer->names[2], H5F_ACC_TRUNC, root, access);
    H5Pclose(root);
    H5Pclose(access);
    if (file < 0) {
        return status_fail(
            STATUS_IO,
            "%s: cannot create: is the folder there and writable, and the disk not full?",
            writer->names[2]);
    }
    offset[TOKENS] =
        reserve(file, "tokens", writer->width == 2 ? H5T_STD_U16LE : H5T_STD_U32LE, writer->tokens);
    offset[DOCUMENT_OFFSETS] =
        reserve(file, "document_offsets", H5T_STD_I64LE, writer->documents + 1);
    offset[LOSS_MASK] =
        writer->options.loss_mask ? reserve(file, "loss_mask", H5T_STD_U8LE, writer->tokens) : 0;
    offset[TOKENIZER_FILE] = writer->options.tokenizer_file_bytes > 0
                                 ? reserve(file, "tokenizer_file", H5T_STD_U8LE,
                                           (int64_t)writer->options.tokenizer_file_bytes)
                                 : 0;
    attribute(file, "format_version", H5T_STD_I64LE, &version);
    attribute(file, "vocab_size", H5T_STD_I64LE, &writer->options.vocab_size);
    attribute(file, "eos_id", H5T_STD_I64LE, &writer->options.eos_id);
    text_attribute(file, "tokenizer", writer->options.tokenizer);
    text_attribute(file, "tokenizer_hash", writer->options.tokenizer_hash);
    bool good = H5Fclose(file) >= 0;
    for (int i = 0; i < DATASETS; i++) {
        good = good && offset[i] >= 0;
    }
    return good ? STATUS_OK
                : status_fail(STATUS_IO, "%s: HDF5 could not write it: disk full?",
                              writer->names[2]);
}

static enum status copy_spool(struct io_file *spool, struct io_file *out, int64_t bytes,
                              int64_t offset)
{
    char *piece = malloc(PIECE);
    enum status status = piece != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory");
    for (int64_t at = 0; at < bytes && status == STATUS_OK; at += PIECE) {
        const size_t size = (size_t)(bytes - at < PIECE ? bytes - at : PIECE);
        status = io_pread(spool, piece, size, at);
        status = status == STATUS_OK ? io_pwrite(out, piece, size, offset + at) : status;
    }
    free(piece);
    return status;
}

static enum status publish(struct token_writer *writer)
{
    int64_t offset[DATASETS] = {0};
    struct io_file out;
    if (writer->tokens == 0) {
        return status_fail(STATUS_DATA, "%s: the inputs hold no tokens", writer->path);
    }
    TRY(lay_out(writer, offset));
    TRY(io_open_write(&out, writer->names[2]));
    enum status status =
        copy_spool(&writer->spool[0], &out, writer->tokens * writer->width, offset[TOKENS]);
    if (status == STATUS_OK) {
        status = io_pwrite(&out, writer->offsets, (size_t)(writer->documents + 1) * sizeof(int64_t),
                           offset[DOCUMENT_OFFSETS]);
    }
    if (status == STATUS_OK && writer->options.loss_mask) {
        status = copy_spool(&writer->spool[1], &out, writer->tokens, offset[LOSS_MASK]);
    }
    if (status == STATUS_OK && writer->options.tokenizer_file_bytes > 0) {
        status = io_pwrite(&out, writer->options.tokenizer_file,
                           writer->options.tokenizer_file_bytes, offset[TOKENIZER_FILE]);
    }
    status = status == STATUS_OK ? io_sync(&out) : status;
    const enum status closed = io_close(&out);
    TRY(status);
    TRY(closed);
    return io_rename(writer->names[2], writer->path);
}

void token_writer_abandon(struct token_writer *writer)
{
    for (int i = 0; writer != NULL && i < 2; i++) {
        const enum status ignored = io_close(&writer->spool[i]);
        (void)ignored;
    }
    for (int i = 0; writer != NULL && i < 3; i++) {
        remove(writer->names[i]); /* temporary files of ours; absent ones are fine */
    }
    if (writer != NULL) {
        free(writer->offsets);
    }
    free(writer);
}

enum status token_writer_close(struct token_writer *writer)
{
    const enum status status = publish(writer);
    token_writer_abandon(writer);
    return status;
}
