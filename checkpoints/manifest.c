#include "checkpoints/manifest.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/hash.h"
#include "kernels/base/io.h"

enum { MAX_PATH = 4096 };
static const char FORMAT[] = "switchyard checkpoint";
static const char HASH_KEY[] = "\"manifest_hash\"";
static const size_t MOST_BYTES = (size_t)1 << 30;

int64_t manifest_blocks(int64_t bytes)
{
    return bytes / MANIFEST_BLOCK_BYTES + (bytes % MANIFEST_BLOCK_BYTES != 0);
}

int64_t manifest_elements(const struct manifest_tensor *tensor)
{
    int64_t count = 1;
    for (int i = 0; i < tensor->ndim; i++) {
        if (tensor->shape[i] != 0 && count > INT64_MAX / tensor->shape[i]) {
            return INT64_MAX; /* no such tensor is */
        }
        count *= tensor->shape[i];
    }
    return count;
}

void manifest_free(struct manifest *manifest)
{
    for (int64_t i = 0; i < manifest->files; i++) {
        free(manifest->file[i].block);
    }
    for (int64_t i = 0; i < manifest->tensors; i++) {
        free(manifest->tensor[i].piece);
    }
    free(manifest->file);
    free(manifest->tensor);
    *manifest = (struct manifest){0};
}

/* Room for one more in an array that doubles. */
static bool grow(void **array, int64_t count, size_t bytes)
{
    if (count > 0 && (count & (count - 1)) != 0) {
        return true;
    }
    void *grown = realloc(*array, (size_t)(count > 0 ? 2 * count : 1) * bytes);
    *array = grown != NULL ? grown : *array;
    return grown != NULL;
}

static enum status no_memory(void)
{
    return status_fail(STATUS_RESOURCE, "out of memory for the checkpoint's manifest");
}

enum status manifest_add_file(struct manifest *manifest, const char *name, int64_t bytes,
                              const uint64_t *block)
{
    const size_t hash_bytes_ = (size_t)manifest_blocks(bytes) * sizeof *block;
    void *array = manifest->file;
    if (!grow(&array, manifest->files, sizeof *manifest->file)) {
        return no_memory();
    }
    manifest->file = array;
    struct manifest_file *file = &manifest->file[manifest->files];
    *file =
        (struct manifest_file){.bytes = bytes, .block = malloc(hash_bytes_ > 0 ? hash_bytes_ : 1)};
    if (file->block == NULL) {
        return no_memory();
    }
    snprintf(file->name, sizeof file->name, "%s", name);
    memcpy(file->block, block, hash_bytes_);
    manifest->files++;
    return STATUS_OK;
}

static bool same_kind(const struct manifest_tensor *a, const struct manifest_tensor *b)
{
    return a->dtype == b->dtype && a->ndim == b->ndim &&
           memcmp(a->shape, b->shape, (size_t)a->ndim * sizeof a->shape[0]) == 0;
}

static enum status add_tensor(struct manifest *manifest, const struct manifest_tensor *like)
{
    void *array = manifest->tensor;
    if (!grow(&array, manifest->tensors, sizeof *manifest->tensor)) {
        return no_memory();
    }
    manifest->tensor = array;
    struct manifest_tensor *tensor = &manifest->tensor[manifest->tensors++];
    *tensor = *like;
    tensor->piece = NULL;
    tensor->pieces = 0;
    tensor->hashed = false;
    tensor->hash = 0;
    return STATUS_OK;
}

/* Pieces come grouped by tensor within a rank, so looking at the last one is enough; seal joins the
 * ranks'. */
enum status manifest_add_piece(struct manifest *manifest, const struct manifest_tensor *like,
                               struct manifest_piece piece)
{
    struct manifest_tensor *last =
        manifest->tensors > 0 ? &manifest->tensor[manifest->tensors - 1] : NULL;
    if (last == NULL || strcmp(last->name, like->name) != 0) {
        TRY(add_tensor(manifest, like));
        last = &manifest->tensor[manifest->tensors - 1];
    }
    if (!same_kind(last, like)) {
        return status_fail(STATUS_INTERNAL, "tensor %s: ranks disagree about its shape or dtype",
                           like->name);
    }
    void *array = last->piece;
    if (!grow(&array, last->pieces, sizeof *last->piece)) {
        return no_memory();
    }
    last->piece = array;
    last->piece[last->pieces++] = piece;
    return STATUS_OK;
}

void manifest_add_hash(struct manifest *manifest, uint64_t hash)
{
    struct manifest_tensor *last = &manifest->tensor[manifest->tensors - 1];
    last->hash += hash;
    last->hashed = true;
}

enum status manifest_merge(struct manifest *manifest, const struct manifest *part)
{
    const int64_t shift = manifest->files;
    for (int64_t i = 0; i < part->files; i++) {
        TRY(manifest_add_file(manifest, part->file[i].name, part->file[i].bytes,
                              part->file[i].block));
    }
    for (int64_t i = 0; i < part->tensors; i++) {
        for (int64_t p = 0; p < part->tensor[i].pieces; p++) {
            struct manifest_piece piece = part->tensor[i].piece[p];
            piece.file += shift;
            TRY(manifest_add_piece(manifest, &part->tensor[i], piece));
        }
        if (part->tensor[i].hashed) {
            manifest_add_hash(manifest, part->tensor[i].hash);
        }
    }
    return STATUS_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct manifest_tensor *)a)->name,
                  ((const struct manifest_tensor *)b)->name);
}

static int by_first(const void *a, const void *b)
{
    const int64_t x = ((const struct manifest_piece *)a)->first,
                  y = ((const struct manifest_piece *)b)->first;
    return (x > y) - (x < y);
}

static enum status append_pieces(struct manifest_tensor *to, const struct manifest_tensor *from)
{
    const size_t count = (size_t)(to->pieces + from->pieces);
    size_t room = 1; /* as `grow` would have it */
    while (room < count) {
        room *= 2;
    }
    struct manifest_piece *grown = realloc(to->piece, room * sizeof *grown);
    if (grown == NULL) {
        return no_memory();
    }
    memcpy(grown + to->pieces, from->piece, (size_t)from->pieces * sizeof *grown);
    to->piece = grown;
    to->pieces = (int64_t)count;
    to->hash += from->hash;
    to->hashed = to->hashed && from->hashed;
    return STATUS_OK;
}

/* Entries of the same name, from several ranks, become one. */
static enum status join_tensors(struct manifest *manifest)
{
    int64_t kept = 0;
    enum status status = STATUS_OK;
    for (int64_t i = 0; i < manifest->tensors; i++) {
        struct manifest_tensor *last = kept > 0 ? &manifest->tensor[kept - 1] : NULL;
        struct manifest_tensor *next = &manifest->tensor[i];
        if (last == NULL || strcmp(last->name, next->name) != 0) {
            manifest->tensor[kept++] = *next;
            continue;
        }
        if (status == STATUS_OK) {
            status = same_kind(last, next)
                         ? append_pieces(last, next)
                         : status_fail(STATUS_INTERNAL,
                                       "tensor %s: ranks disagree about its shape or "
                                       "dtype",
                                       next->name);
        }
        free(next->piece);
    }
    manifest->tensors = kept;
    return status;
}

static bool covered(const struct manifest_tensor *tensor)
{
    int64_t next = 0;
    for (int64_t p = 0; p < tensor->pieces; p++) {
        if (tensor->piece[p].first != next) {
            return false;
        }
        next += tensor->piece[p].count;
    }
    return next == manifest_elements(tensor);
}

enum status manifest_seal(struct manifest *manifest)
{
    if (manifest->tensors > 0) {
        qsort(manifest->tensor, (size_t)manifest->tensors, sizeof *manifest->tensor, by_name);
    }
    TRY(join_tensors(manifest));
    for (int64_t i = 0; i < manifest->tensors; i++) {
        struct manifest_tensor *tensor = &manifest->tensor[i];
        qsort(tensor->piece, (size_t)tensor->pieces, sizeof *tensor->piece, by_first);
        if (!covered(tensor)) {
            return status_fail(STATUS_INTERNAL, "tensor %s: its pieces have a gap or overlap",
                               tensor->name);
        }
    }
    return STATUS_OK;
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

static json_t *print_tensor(const struct manifest_tensor *tensor)
{
    json_t *shape = json_array(), *pieces = json_array();
    for (int i = 0; i < tensor->ndim; i++) {
        json_array_append_new(shape, json_integer(tensor->shape[i]));
    }
    for (int64_t p = 0; p < tensor->pieces; p++) {
        const struct manifest_piece *piece = &tensor->piece[p];
        json_array_append_new(pieces, json_pack("[I, I, I, I]", (json_int_t)piece->file,
                                                (json_int_t)piece->first, (json_int_t)piece->count,
                                                (json_int_t)piece->offset));
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
    for (int64_t i = 0; i < manifest->files; i++) {
        json_array_append_new(files, print_file(&manifest->file[i]));
    }
    for (int64_t i = 0; i < manifest->tensors; i++) {
        json_array_append_new(tensors, print_tensor(&manifest->tensor[i]));
    }
    json_t *json = json_pack("{s:s, s:i, s:I, s:I, s:I, s:o, s:o}", "format", FORMAT, "version",
                             MANIFEST_VERSION, "step", (json_int_t)manifest->step, "ranks",
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

static enum status parse_tensor(struct manifest *manifest, const char *where, const json_t *json)
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
        const json_t *entry = json_array_get(pieces, p);
        if (!get_int(json_array_get(entry, 0), &piece.file) ||
            !get_int(json_array_get(entry, 1), &piece.first) ||
            !get_int(json_array_get(entry, 2), &piece.count) ||
            !get_int(json_array_get(entry, 3), &piece.offset) || piece.file >= manifest->files ||
            piece.offset > manifest->file[piece.file].bytes ||
            piece.count > (manifest->file[piece.file].bytes - piece.offset) /
                              (int64_t)dtype_bytes(tensor.dtype)) {
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
    if (version != MANIFEST_VERSION || block != MANIFEST_BLOCK_BYTES) {
        return status_fail(
            STATUS_DATA,
            "%s: format version %lld, this program reads %d: use the version that wrote it", where,
            (long long)version, MANIFEST_VERSION);
    }
    for (size_t i = 0; i < json_array_size(files); i++) {
        TRY(parse_file(manifest, where, json_array_get(files, i)));
    }
    for (size_t i = 0; i < json_array_size(tensors); i++) {
        TRY(parse_tensor(manifest, where, json_array_get(tensors, i)));
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

const struct manifest_tensor *manifest_find(const struct manifest *manifest, const char *name)
{
    struct manifest_tensor key = {0};
    if (strlen(name) >= sizeof key.name || manifest->tensors == 0) {
        return NULL;
    }
    snprintf(key.name, sizeof key.name, "%s", name);
    return bsearch(&key, manifest->tensor, (size_t)manifest->tensors, sizeof key, by_name);
}
