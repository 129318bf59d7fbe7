#include <hdf5.h>
#include <stdlib.h>

#include "data/token_formats.h"
#include "kernels/base/h5_reader.h"

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
    store->vocab_known = true;
    if (version != TOKEN_FORMAT_VERSION) {
        return status_fail(STATUS_DATA, "%s: format version %lld, this program reads %d",
                           store->path, (long long)version, TOKEN_FORMAT_VERSION);
    }
    return STATUS_OK;
}

static enum status take(struct token_store *store, const struct extent at[DATASETS])
{
    const struct extent *offsets = &at[DOCUMENT_OFFSETS], *text = &at[TOKENIZER_FILE];
    store->format = "token file";
    store->tokens = at[TOKENS].count;
    store->width = (int)at[TOKENS].width;
    store->tokens_at = at[TOKENS].offset;
    store->mask_at = at[LOSS_MASK].offset; /* 0: absent; HDF5's own bytes come first */
    store->largest_id = store->vocab_size - 1;
    TRY(token_store_reserve(store, offsets->count - 1));
    block_file_read_through(store->file, offsets->offset, store->document_offsets,
                            (size_t)offsets->count * sizeof(int64_t));
    if (text->present && text->count > 0) {
        store->tokenizer_file_bytes = (size_t)text->count;
        store->tokenizer_file = malloc(store->tokenizer_file_bytes);
        if (store->tokenizer_file == NULL) {
            return status_fail(STATUS_RESOURCE, "%s: out of memory for its tokenizer", store->path);
        }
        block_file_read_through(store->file, text->offset, store->tokenizer_file,
                                store->tokenizer_file_bytes);
    }
    return block_file_status(store->file);
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

/* What HDF5 makes of what it could not read is nothing to go by: the disk's error comes first. */
static enum status read_file(struct token_store *store, struct h5_reader *reader,
                             struct extent at[DATASETS])
{
    TRY(h5_reader_open(reader, &store->file->file));
    const enum status status =
        reader->id >= 0
            ? read_layout(reader->id, store, reader->bytes, at)
            : foreign(store->path, "not a whole HDF5 file, nor Megatron's .bin with its .idx, nor "
                                   "llm.c's .bin");
    TRY(h5_reader_status(reader));
    return status;
}

enum status token_h5_open(struct token_store *store)
{
    struct extent at[DATASETS] = {{0}};
    struct h5_reader reader;
    const enum status status = read_file(store, &reader, at);
    h5_reader_close(&reader);
    return status == STATUS_OK ? take(store, at) : status;
}
