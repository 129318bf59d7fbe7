#include "checkpoints/manifest.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/hash.h"
#include "kernels/base/io.h"

/* The manifest as JSON: written, read back. */

enum { MAX_PATH = 4096 };
static const char FORMAT[] = "switchyard checkpoint";
static const char HASH_KEY[] = "\"manifest_hash\"";
static const size_t MOST_BYTES = (size_t)1 << 30;

static enum status no_memory(void)
{
    return status_fail(STATUS_RESOURCE, "out of memory for the checkpoint's manifest");
}

static json_t *print_file(const struct manifest_file *file)
{
    json_t *blocks = json_array();
    for (int64_t b = 0; b < manifest_blocks(file->bytes); b++) {
        char hex[17];
        hash_hex(hex, file->block[b]);
        json_array_append_new(blocks, json_string(hex));
    }
    return json_pack("{s:s, s:I, s:o}", "name", file->name, "bytes", (json_int_t)file->bytes,
                     "blocks", blocks);
}

/* version: raised to what the tensor needs. */
static json_t *print_tensor(const struct manifest_tensor *tensor, int *version)
{
    json_t *shape = json_array(), *pieces = json_array();
    for (int i = 0; i < tensor->ndim; i++) {
        json_array_append_new(shape, json_integer(tensor->shape[i]));
    }
    for (int64_t p = 0; p < tensor->pieces; p++) {
        const struct manifest_piece *piece = &tensor->piece[p];
        json_t *entry = json_pack("[I, I, I, I]", (json_int_t)piece->file, (json_int_t)piece->first,
                                  (json_int_t)piece->count, (json_int_t)piece->offset);
        if (piece->run != 0) {
            json_array_append_new(entry, json_integer(piece->run));
            json_array_append_new(entry, json_integer(piece->stride));
            *version = 2;
        }
        json_array_append_new(pieces, entry);
    }
    json_t *json = json_pack("{s:s, s:s, s:o, s:o}", "name", tensor->name, "dtype",
                             dtype_name(tensor->dtype), "shape", shape, "pieces", pieces);
    if (tensor->hashed) {
        char hex[17];
        hash_hex(hex, tensor->hash);
        json_object_set_new(json, "hash", json_string(hex));
    }
    return json;
}

char *manifest_print(const struct manifest *manifest)
{
    json_t *files = json_array(), *tensors = json_array();
    int version = 1;
    for (int64_t i = 0; i < manifest->files; i++) {
        json_array_append_new(files, print_file(&manifest->file[i]));
    }
    for (int64_t i = 0; i < manifest->tensors; i++) {
        json_array_append_new(tensors, print_tensor(&manifest->tensor[i], &version));
    }
    json_t *json = json_pack("{s:s, s:i, s:I, s:I, s:I, s:o, s:o}", "format", FORMAT, "version",
                             version, "step", (json_int_t)manifest->step, "ranks",
                             (json_int_t)manifest->ranks, "block_bytes",
                             (json_int_t)MANIFEST_BLOCK_BYTES, "files", files, "tensors", tensors);
    char *body = json_dumps(json, JSON_COMPACT);
    json_decref(json);
    const size_t bytes = body != NULL ? strlen(body) : 0;
    char *text = body != NULL ? malloc(bytes + sizeof HASH_KEY + 32) : NULL;
    if (text != NULL) { /* the closing brace makes way for the hash of all before it */
        char hex[17];
        body[bytes - 1] = ',';
        hash_hex(hex, hash_bytes(body, bytes));
        snprintf(text, bytes + sizeof HASH_KEY + 32, "%s%s:\"%s\"}\n", body, HASH_KEY, hex);
    }
    free(body);
    return text;
}

static enum status damaged(const char *where, const char *why)
{
    return status_fail(STATUS_DATA, "%s: damaged manifest: %s", where, why);
}

static bool hash_agrees(const char *text)
{
    const char *at = NULL;
    for (const char *next = strstr(text, HASH_KEY); next != NULL;
         next = strstr(next + 1, HASH_KEY)) {
        at = next;
    }
    if (at == NULL) {
        return false;
    }
    char hex[17], expected[64];
    hash_hex(hex, hash_bytes(text, (size_t)(at - text)));
    snprintf(expected, sizeof expected, "%s:\"%s\"}\n", HASH_KEY, hex);
    return strcmp(at, expected) == 0;
}

static bool plain_name(const char *name)
{
    return name != NULL && name[0] != '\0' && name[0] != '.' && strchr(name, '/') == NULL &&
           strlen(name) < MANIFEST_NAME_BYTES;
}

static bool get_int(const json_t *json, int64_t *value)
{
    *value = json_integer_value(json);
    return json_is_integer(json) && *value >= 0;
}

static bool parse_hash(uint64_t *hash, const json_t *json)
{
    const char *hex = json_string_value(json);
    const bool good =
        hex != NULL && strlen(hex) == 16 && strspn(hex, "0123456789abcdef") == strlen(hex);
    *hash = good ? strtoull(hex, NULL, 16) : 0;
    return good;
}

static enum status parse_file(struct manifest *manifest, const char *where, const json_t *json)
{
    const char *name = json_string_value(json_object_get(json, "name"));
    const json_t *blocks = json_object_get(json, "blocks");
    int64_t bytes = 0;
    if (!plain_name(name) || !get_int(json_object_get(json, "bytes"), &bytes) ||
        (int64_t)json_array_size(blocks) != manifest_blocks(bytes)) {
        return damaged(where, "a file entry");
    }
    bool good = true;
    uint64_t *block = calloc((size_t)manifest_blocks(bytes) + 1, sizeof *block);
    if (block == NULL) {
        return no_memory();
    }
    for (int64_t b = 0; b < manifest_blocks(bytes); b++) {
        good = parse_hash(&block[b], json_array_get(blocks, (size_t)b)) && good;
    }
    const enum status status =
        good ? manifest_add_file(manifest, name, bytes, block) : damaged(where, "a file entry");
    free(block);
    return status;
}

static bool parse_shape(struct manifest_tensor *tensor, const json_t *shape)
{
    const size_t ndim = json_array_size(shape);
    tensor->ndim = (int)ndim;
    for (size_t i = 0; i < ndim && ndim <= 4; i++) {
        if (!get_int(json_array_get(shape, i), &tensor->shape[i]) || tensor->shape[i] > (int64_t)1
                                                                                            << 40) {
            return false;
        }
    }
    return ndim >= 1 && ndim <= 4;
}

static bool parse_dtype(enum dtype *dtype, const char *name)
{
    for (int i = 0; i < DTYPE_COUNT; i++) {
        if (name != NULL && strcmp(name, dtype_name((enum dtype)i)) == 0) {
            *dtype = (enum dtype)i;
            return true;
        }
    }
    return false;
}

/* [file, first, count, offset], from version 2 on with [..., run, stride]. */
static bool parse_piece(struct manifest_piece *piece, const json_t *entry, int64_t version)
{
    const bool runs = version > 1 && json_array_size(entry) != 4;
    *piece = (struct manifest_piece){0};
    return get_int(json_array_get(entry, 0), &piece->file) &&
           get_int(json_array_get(entry, 1), &piece->first) &&
           get_int(json_array_get(entry, 2), &piece->count) &&
           get_int(json_array_get(entry, 3), &piece->offset) &&
           (!runs || (get_int(json_array_get(entry, 4), &piece->run) &&
                      get_int(json_array_get(entry, 5), &piece->stride) && piece->run > 0));
}

static bool lies_in_file(const struct manifest *manifest, const struct manifest_piece *piece,
                         enum dtype dtype)
{
    return piece->file < manifest->files && piece->offset <= manifest->file[piece->file].bytes &&
           piece->count <=
               (manifest->file[piece->file].bytes - piece->offset) / (int64_t)dtype_bytes(dtype);
}

static enum status parse_tensor(struct manifest *manifest, const char *where, const json_t *json,
                                int64_t version)
{
    struct manifest_tensor tensor = {0};
    const char *name = json_string_value(json_object_get(json, "name"));
    const json_t *pieces = json_object_get(json, "pieces"), *hash = json_object_get(json, "hash");
    uint64_t sum = 0;
    if (name == NULL || (hash != NULL && !parse_hash(&sum, hash)) ||
        strlen(name) >= sizeof tensor.name || json_array_size(pieces) == 0 ||
        !parse_dtype(&tensor.dtype, json_string_value(json_object_get(json, "dtype"))) ||
        !parse_shape(&tensor, json_object_get(json, "shape"))) {
        return damaged(where, "a tensor entry");
    }
    snprintf(tensor.name, sizeof tensor.name, "%s", name);
    for (size_t p = 0; p < json_array_size(pieces); p++) {
        struct manifest_piece piece;
        if (!parse_piece(&piece, json_array_get(pieces, p), version) ||
            !lies_in_file(manifest, &piece, tensor.dtype)) {
            return damaged(where, "a piece lies outside its file");
        }
        TRY(manifest_add_piece(manifest, &tensor, piece));
    }
    if (hash != NULL) {
        manifest_add_hash(manifest, sum);
    }
    return STATUS_OK;
}

static enum status parse_json(struct manifest *manifest, const char *where, const json_t *json)
{
    const char *format = json_string_value(json_object_get(json, "format"));
    const json_t *files = json_object_get(json, "files"),
                 *tensors = json_object_get(json, "tensors");
    int64_t version = 0, block = 0;
    if (format == NULL || strcmp(format, FORMAT) != 0 ||
        !get_int(json_object_get(json, "version"), &version) ||
        !get_int(json_object_get(json, "block_bytes"), &block) ||
        !get_int(json_object_get(json, "step"), &manifest->step) ||
        !get_int(json_object_get(json, "ranks"), &manifest->ranks)) {
        return damaged(where, "a field is missing");
    }
    if (version < 1 || version > MANIFEST_VERSION || block != MANIFEST_BLOCK_BYTES) {
        return status_fail(
            STATUS_DATA,
            "%s: format version %lld, this program reads 1 to %d: use the version that wrote it",
            where, (long long)version, MANIFEST_VERSION);
    }
    for (size_t i = 0; i < json_array_size(files); i++) {
        TRY(parse_file(manifest, where, json_array_get(files, i)));
    }
    for (size_t i = 0; i < json_array_size(tensors); i++) {
        TRY(parse_tensor(manifest, where, json_array_get(tensors, i), version));
    }
    return STATUS_OK;
}

static enum status parse(struct manifest *manifest, const char *where, const char *text, bool whole)
{
    *manifest = (struct manifest){0};
    if (!hash_agrees(text)) {
        return damaged(where, "its own hash does not agree");
    }
    json_t *json = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    enum status status = parse_json(manifest, where, json);
    json_decref(json);
    status = status == STATUS_OK && whole ? manifest_seal(manifest) : status;
    if (status == STATUS_INTERNAL) {
        status = damaged(where, "its tensors do not add up");
    }
    if (status != STATUS_OK) {
        manifest_free(manifest);
    }
    return status;
}

enum status manifest_parse(struct manifest *manifest, const char *where, const char *text)
{
    return parse(manifest, where, text, true);
}

enum status manifest_parse_part(struct manifest *manifest, const char *text)
{
    return parse(manifest, "a rank's part", text, false);
}

enum status manifest_read(struct manifest *manifest, const char *path)
{
    char name[MAX_PATH];
    char *text = NULL;
    size_t bytes = 0;
    *manifest = (struct manifest){0};
    if (snprintf(name, sizeof name, "%s/manifest.json", path) >= MAX_PATH) {
        return status_fail(STATUS_DATA, "path too long: %s", path);
    }
    if (!io_exists(name)) {
        return status_fail(STATUS_DATA,
                           "%s: no manifest.json: an unfinished save, or not a checkpoint", path);
    }
    TRY(io_read_file(name, &text, &bytes, MOST_BYTES));
    const enum status status = manifest_parse(manifest, name, text);
    free(text);
    return status;
}
