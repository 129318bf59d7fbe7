#include "data/token_store.h"

#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/base/io.h"

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
    if (version != TOKEN_FORMAT_VERSION) {
        return status_fail(STATUS_DATA, "%s: format version %lld, this program reads %d",
                           store->path, (long long)version, TOKEN_FORMAT_VERSION);
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
