#include "data/token_store.h"

#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/base/io.h"

enum { FORMAT_VERSION = 1, MAX_PATH = 4096, PIECE = 1 << 20 };
enum { TOKENS, DOCUMENT_OFFSETS, LOSS_MASK, TOKENIZER_FILE, DATASETS };

/* Where a dataset lies in the file. */
struct extent {
    int64_t offset, count;
    size_t width;
    bool present;
};

static enum status foreign(const char *path, const char *why)
{
    return status_fail(STATUS_DATA, "%s: %s: not a token file; make one with `switchyard prepare`",
                       path, why);
}

/* A contiguous, unfiltered integer dataset, inside the file. */
static enum status find_dataset(hid_t file, const char *path, const char *name, int64_t file_bytes,
                                struct extent *out)
{
    hsize_t count = 0;
    *out = (struct extent){0};
    if (H5Lexists(file, name, H5P_DEFAULT) <= 0) {
        return STATUS_OK;
    }
    const hid_t set = H5Dopen2(file, name, H5P_DEFAULT);
    if (set < 0) {
        return foreign(path, name);
    }
    const hid_t space = H5Dget_space(set), type = H5Dget_type(set),
                plist = H5Dget_create_plist(set);
    const bool plain = H5Pget_layout(plist) == H5D_CONTIGUOUS && H5Pget_nfilters(plist) == 0 &&
                       H5Pget_external_count(plist) == 0 &&
                       H5Sget_simple_extent_ndims(space) == 1 &&
                       H5Tget_class(type) == H5T_INTEGER && H5Tget_order(type) != H5T_ORDER_BE;
    if (plain) {
        H5Sget_simple_extent_dims(space, &count, NULL);
        const haddr_t offset = H5Dget_offset(set); /* none: created, never written */
        *out = (struct extent){.offset = offset == HADDR_UNDEF ? -1 : (int64_t)offset,
                               .count = (int64_t)count,
                               .width = H5Tget_size(type),
                               .present = true};
    }
    H5Pclose(plist);
    H5Tclose(type);
    H5Sclose(space);
    H5Dclose(set);
    if (!plain) {
        return foreign(path, "a dataset is compressed, chunked or not of whole numbers");
    }
    if (out->offset < 0) {
        return foreign(path, "a dataset has no data");
    }
    const int64_t room = file_bytes - out->offset;
    if (out->count < 0 || room < 0 || out->count > room / (int64_t)out->width) {
        return status_fail(
            STATUS_DATA,
            "%s: dataset %s reaches beyond the end of the file: truncated; prepare it again", path,
            name);
    }
    return STATUS_OK;
}

static bool read_integer(hid_t file, const char *name, int64_t *value)
{
    const hid_t attribute = H5Aexists(file, name) > 0 ? H5Aopen(file, name, H5P_DEFAULT) : -1;
    if (attribute < 0) {
        return false;
    }
    const bool good = H5Aread(attribute, H5T_NATIVE_INT64, value) >= 0;
    H5Aclose(attribute);
    return good;
}

static bool read_text(hid_t file, const char *name, char *out, size_t bytes)
{
    const hid_t attribute = H5Aexists(file, name) > 0 ? H5Aopen(file, name, H5P_DEFAULT) : -1;
    if (attribute < 0) {
        return false;
    }
    const hid_t type = H5Tcopy(H5T_C_S1), stored = H5Aget_type(attribute);
    H5Tset_size(type, bytes);
    const bool good = H5Tis_variable_str(stored) == 0 && H5Aread(attribute, type, out) >= 0;
    out[bytes - 1] = '\0';
    H5Tclose(stored);
    H5Tclose(type);
    H5Aclose(attribute);
    return good;
}

static enum status read_attributes(hid_t file, struct token_store *store)
{
    int64_t version = 0;
    if (!read_integer(file, "format_version", &version) ||
        !read_integer(file, "vocab_size", &store->vocab_size) ||
        !read_integer(file, "eos_id", &store->eos_id) ||
        !read_text(file, "tokenizer", store->tokenizer, sizeof store->tokenizer) ||
        !read_text(file, "tokenizer_hash", store->tokenizer_hash, sizeof store->tokenizer_hash)) {
        return foreign(store->path, "an attribute is missing");
    }
    if (version != FORMAT_VERSION) {
        return status_fail(STATUS_DATA, "%s: format version %lld, this program reads %d",
                           store->path, (long long)version, FORMAT_VERSION);
    }
    return STATUS_OK;
}

static enum status check_documents(struct token_store *store)
{
    const int64_t *offsets = store->document_offsets;
    bool good =
        store->documents >= 1 && offsets[0] == 0 && offsets[store->documents] == store->tokens;
    for (int64_t i = 0; good && i < store->documents; i++) {
        good = offsets[i] <= offsets[i + 1];
    }
    return good ? STATUS_OK
                : foreign(store->path, "document_offsets do not cut the tokens into documents");
}

static enum status check_tokens(const struct token_store *store)
{
    int64_t most = 0;
    for (int64_t i = 0; i < store->tokens; i++) {
        const int64_t id = token_store_get(store, i);
        most = id > most ? id : most;
    }
    return most < store->vocab_size
               ? STATUS_OK
               : status_fail(STATUS_DATA,
                             "%s: token id %lld, but its vocab_size is %lld: prepare it again",
                             store->path, (long long)most, (long long)store->vocab_size);
}

static enum status map_file(struct token_store *store, struct io_file *file, int64_t bytes,
                            const struct extent at[DATASETS])
{
    store->map = mmap(NULL, (size_t)bytes, PROT_READ, MAP_SHARED, file->fd, 0);
    if (store->map == MAP_FAILED) {
        store->map = NULL;
        return status_fail(STATUS_IO, "%s: cannot map the file into memory", store->path);
    }
    store->map_bytes = (size_t)bytes;
    store->tokens = at[TOKENS].count;
    store->width = (int)at[TOKENS].width;
    store->token_data = (const char *)store->map + at[TOKENS].offset;
    store->documents = at[DOCUMENT_OFFSETS].count - 1;
    store->document_offsets =
        malloc((size_t)at[DOCUMENT_OFFSETS].count * sizeof *store->document_offsets);
    if (store->document_offsets == NULL) {
        return status_fail(STATUS_RESOURCE, "%s: out of memory for its documents", store->path);
    }
    memcpy(store->document_offsets, (const char *)store->map + at[DOCUMENT_OFFSETS].offset,
           (size_t)at[DOCUMENT_OFFSETS].count * sizeof(int64_t));
    store->loss_mask =
        at[LOSS_MASK].present ? (const uint8_t *)store->map + at[LOSS_MASK].offset : NULL;
    if (at[TOKENIZER_FILE].present) {
        store->tokenizer_file = (const char *)store->map + at[TOKENIZER_FILE].offset;
        store->tokenizer_file_bytes = (size_t)at[TOKENIZER_FILE].count;
    }
    TRY(check_documents(store));
    return check_tokens(store);
}

static enum status read_layout(hid_t h5, struct token_store *store, int64_t bytes,
                               struct extent at[DATASETS])
{
    static const char *const names[DATASETS] = {"tokens", "document_offsets", "loss_mask",
                                                "tokenizer_file"};
    for (int i = 0; i < DATASETS; i++) {
        TRY(find_dataset(h5, store->path, names[i], bytes, &at[i]));
    }
    TRY(read_attributes(h5, store));
    if (!at[TOKENS].present || !at[DOCUMENT_OFFSETS].present || at[DOCUMENT_OFFSETS].width != 8 ||
        (at[TOKENS].width != 2 && at[TOKENS].width != 4) ||
        (at[LOSS_MASK].present &&
         (at[LOSS_MASK].width != 1 || at[LOSS_MASK].count != at[TOKENS].count)) ||
        (at[TOKENIZER_FILE].present && at[TOKENIZER_FILE].width != 1) ||
        at[DOCUMENT_OFFSETS].count < 1) {
        return foreign(store->path,
                       "tokens, document_offsets, loss_mask or tokenizer_file is missing or of a "
                       "wrong type");
    }
    return at[TOKENS].count > 0
               ? STATUS_OK
               : status_fail(STATUS_DATA, "%s: no tokens in it: prepare some text", store->path);
}

enum status token_store_open(struct token_store *store, const char *path)
{
    struct io_file file;
    struct extent at[DATASETS];
    int64_t bytes = 0;
    *store = (struct token_store){.path = strdup(path)};
    TRY(io_open_read(&file, path));
    enum status status = io_size(&file, &bytes);
    if (status == STATUS_OK && bytes == 0) {
        status = status_fail(STATUS_DATA,
                             "%s: the file is empty; make one with `switchyard prepare`", path);
    }
    if (status == STATUS_OK) {
        H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
        const hid_t h5 = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
        status =
            h5 >= 0 ? read_layout(h5, store, bytes, at) : foreign(path, "not a whole HDF5 file");
        if (h5 >= 0) {
            H5Fclose(h5);
        }
    }
    status = status == STATUS_OK ? map_file(store, &file, bytes, at) : status;
    const enum status closed = io_close(&file);
    return status == STATUS_OK ? closed : status;
}

void token_store_close(struct token_store *store)
{
    if (store->map != NULL) {
        munmap(store->map, store->map_bytes);
    }
    free(store->document_offsets);
    free(store->path);
    *store = (struct token_store){0};
}

int64_t token_store_get(const struct token_store *store, int64_t i)
{
    uint16_t narrow;
    uint32_t wide;
    if (store->width == 2) { /* other programs' files may hold them at odd addresses */
        memcpy(&narrow, (const char *)store->token_data + 2 * i, sizeof narrow);
        return narrow;
    }
    memcpy(&wide, (const char *)store->token_data + 4 * i, sizeof wide);
    return wide;
}

int64_t token_store_document(const struct token_store *store, int64_t i)
{
    int64_t low = 0, high = store->documents - 1;
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        if (store->document_offsets[middle] <= i) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

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
    const int64_t version = FORMAT_VERSION;
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
