#include "checkpoints/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/json_text.h"

enum { MAX_PATH = 4096, LENGTH_BYTES = 8 };

static const struct {
    const char *name;
    enum dtype dtype;
} dtypes[] = {
    {"F32", DTYPE_F32}, {"BF16", DTYPE_BF16}, {"F16", DTYPE_F16}, {"F8_E4M3", DTYPE_E4M3},
    {"F64", DTYPE_F64}, {"I64", DTYPE_I64},   {"I32", DTYPE_I32}, {"U8", DTYPE_U8},
};
enum { DTYPES = sizeof dtypes / sizeof dtypes[0] };

const char *safetensors_dtype(enum dtype dtype)
{
    for (int i = 0; i < DTYPES; i++) {
        if (dtypes[i].dtype == dtype) {
            return dtypes[i].name;
        }
    }
    return NULL;
}

static bool parse_dtype(enum dtype *dtype, const char *name)
{
    for (int i = 0; i < DTYPES; i++) {
        if (strcmp(dtypes[i].name, name) == 0) {
            *dtype = dtypes[i].dtype;
            return true;
        }
    }
    return false;
}

void safetensors_close(struct safetensors *model)
{
    if (model->files > 0 && model->opened >= 0) {
        const enum status ignored = io_close(&model->open); /* it was only read */
        (void)ignored;
    }
    for (int64_t i = 0; i < model->files; i++) {
        free(model->path[i]);
    }
    free(model->path);
    free(model->tensor);
    *model = (struct safetensors){.opened = -1};
}

static enum status no_memory(const char *path)
{
    return status_fail(STATUS_RESOURCE, "%s: out of memory for its table of tensors", path);
}

/* --- one header --- */

static enum status bad_tensor(const char *path, const char *name, const char *why)
{
    return status_fail(STATUS_DATA, "%s: tensor '%.*s': %s: damaged, or not written by safetensors",
                       path, SAFETENSORS_NAME_BYTES, name, why);
}

static bool get_count(const json_t *json, int64_t *value)
{
    *value = json_integer_value(json);
    return json_is_integer(json) && *value >= 0;
}

/* Bytes of the tensor's shape and dtype; false: more than 64 bits hold. */
static bool shape_bytes(const struct safetensors_tensor *tensor, int64_t *bytes)
{
    *bytes = (int64_t)dtype_bytes(tensor->dtype);
    bool empty = false;
    for (int i = 0; i < tensor->ndim; i++) {
        empty = empty || tensor->shape[i] == 0;
    }
    for (int i = 0; i < tensor->ndim && !empty; i++) {
        if (*bytes > INT64_MAX / tensor->shape[i]) {
            return false;
        }
        *bytes *= tensor->shape[i];
    }
    *bytes = empty ? 0 : *bytes;
    return true;
}

static enum status parse_shape(struct safetensors_tensor *tensor, const char *path,
                               const json_t *shape)
{
    const size_t ndim = json_array_size(shape);
    if (!json_is_array(shape)) {
        return bad_tensor(path, tensor->name, "shape is not a list");
    }
    if (ndim > SAFETENSORS_DIMS) {
        return status_fail(STATUS_DATA, "%s: tensor '%s': %zu dimensions, this program reads %d",
                           path, tensor->name, ndim, SAFETENSORS_DIMS);
    }
    tensor->ndim = (int)ndim;
    for (size_t i = 0; i < ndim; i++) {
        if (!get_count(json_array_get(shape, i), &tensor->shape[i])) {
            return bad_tensor(path, tensor->name, "shape is not made of whole numbers from 0");
        }
    }
    return STATUS_OK;
}

/* One entry of a header; offsets count from `data`, the file's first data byte. */
static enum status parse_tensor(struct safetensors_tensor *tensor, const char *path,
                                const char *name, const json_t *json, int64_t data)
{
    const char *dtype = json_string_value(json_object_get(json, "dtype"));
    const json_t *offsets = json_object_get(json, "data_offsets");
    int64_t begin = 0, end = 0, needed = 0;
    if (name[0] == '\0' || strlen(name) >= sizeof tensor->name) {
        return bad_tensor(path, name, "its name is empty or too long");
    }
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
    if (dtype == NULL || json_object_size(json) != 3) {
        return bad_tensor(path, name, "an entry is dtype, shape and data_offsets");
    }
    if (!parse_dtype(&tensor->dtype, dtype)) {
        return status_fail(STATUS_DATA,
                           "%s: tensor '%s' has dtype '%.32s': this program reads F32, BF16, F16, "
                           "F8_E4M3, F64, I64, I32, U8",
                           path, name, dtype);
    }
    TRY(parse_shape(tensor, path, json_object_get(json, "shape")));
    if (json_array_size(offsets) != 2 || !get_count(json_array_get(offsets, 0), &begin) ||
        !get_count(json_array_get(offsets, 1), &end) || end < begin || end > INT64_MAX - data) {
        return bad_tensor(path, name, "data_offsets are not [begin, end]");
    }
    if (!shape_bytes(tensor, &needed) || needed != end - begin) {
        return status_fail(STATUS_DATA,
                           "%s: tensor '%s': its shape and %s need %lld bytes, data_offsets give "
                           "%lld",
                           path, name, dtype, (long long)needed, (long long)(end - begin));
    }
    tensor->offset = data + begin;
    tensor->bytes = needed;
    return STATUS_OK;
}

static int by_offset(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;
    return x->offset != y->offset ? (x->offset > y->offset) - (x->offset < y->offset)
                                  : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct safetensors_tensor *)a)->name,
                  ((const struct safetensors_tensor *)b)->name);
}

/* The tensors of a file, by offset, cover bytes [data, size) exactly. */
static enum status check_cover(const char *path, struct safetensors_tensor *tensors, int64_t count,
                               int64_t data, int64_t size)
{
    int64_t next = data;
    if (count > 0) {
        qsort(tensors, (size_t)count, sizeof *tensors, by_offset);
    }
    for (int64_t i = 0; i < count; i++) {
        if (tensors[i].offset != next) {
            return status_fail(STATUS_DATA,
                               "%s: tensor '%s' begins at data byte %lld, the one before it ends "
                               "at %lld: %s",
                               path, tensors[i].name, (long long)(tensors[i].offset - data),
                               (long long)(next - data),
                               tensors[i].offset < next ? "they overlap" : "a hole");
        }
        next += tensors[i].bytes;
    }
    if (next == size) {
        return STATUS_OK;
    }
    return status_fail(STATUS_DATA, "%s: %lld bytes, its header describes %lld: %s", path,
                       (long long)size, (long long)next,
                       next > size ? "truncated: copy it again" : "bytes behind the last tensor");
}

static bool is_metadata(const char *name)
{
    return strcmp(name, "__metadata__") == 0;
}

/* Metadata maps text to text; it means nothing here. */
static enum status check_metadata(const char *path, json_t *json)
{
    const char *key;
    json_t *value;
    bool good = json_is_object(json);
    json_object_foreach(json, key, value)
    {
        good = good && json_is_string(value);
    }
    return good ? STATUS_OK
                : status_fail(STATUS_DATA, "%s: __metadata__ does not map text to text", path);
}

/* Appends the tensors of a parsed header. */
static enum status add_tensors(struct safetensors *model, int64_t file, json_t *json, int64_t data,
                               int64_t size)
{
    const char *path = model->path[file], *name;
    const size_t room = (size_t)model->tensors + json_object_size(json) + 1;
    struct safetensors_tensor *grown = realloc(model->tensor, room * sizeof *grown);
    json_t *entry;
    int64_t count = 0;
    if (grown == NULL) {
        return no_memory(path);
    }
    model->tensor = grown;
    struct safetensors_tensor *own = grown + model->tensors;
    json_object_foreach(json, name, entry)
    {
        if (is_metadata(name)) {
            TRY(check_metadata(path, entry));
            continue;
        }
        own[count] = (struct safetensors_tensor){.file = file};
        TRY(parse_tensor(&own[count++], path, name, entry, data));
    }
    TRY(check_cover(path, own, count, data, size));
    model->tensors += count;
    return STATUS_OK;
}

/* The length at the start of a file of `size` bytes. */
static enum status read_length(struct io_file *file, int64_t size, int64_t *length)
{
    unsigned char raw[LENGTH_BYTES];
    uint64_t value = 0;
    if (size < LENGTH_BYTES) {
        return status_fail(STATUS_DATA, "%s: %lld bytes: too short for a safetensors file",
                           file->path, (long long)size);
    }
    TRY(io_pread(file, raw, sizeof raw, 0));
    for (int i = LENGTH_BYTES - 1; i >= 0; i--) {
        value = value << 8 | raw[i];
    }
    if (value > (uint64_t)SAFETENSORS_HEADER_BYTES) {
        return status_fail(STATUS_DATA,
                           "%s: its header would have %llu bytes, more than %lld: not a "
                           "safetensors file",
                           file->path, (unsigned long long)value,
                           (long long)SAFETENSORS_HEADER_BYTES);
    }
    *length = (int64_t)value;
    if (*length > size - LENGTH_BYTES) {
        return status_fail(STATUS_DATA, "%s: %lld bytes, its header alone has %lld: truncated",
                           file->path, (long long)size, (long long)*length);
    }
    return STATUS_OK;
}

static enum status parse_header(struct safetensors *model, int64_t file, const char *text,
                                int64_t length, int64_t size)
{
    json_t *json = NULL;
    const char *path = model->path[file];
    if (length == 0 || text[0] != '{') {
        return status_fail(STATUS_DATA, "%s: its header does not begin with '{'", path);
    }
    TRY(json_text_parse(&json, path, text, (size_t)length));
    const enum status status = add_tensors(model, file, json, LENGTH_BYTES + length, size);
    json_decref(json);
    return status;
}

static enum status read_header(struct safetensors *model, int64_t index)
{
    struct io_file file;
    int64_t size = 0, length = 0;
    char *text = NULL;
    TRY(io_check_regular(model->path[index]));
    TRY(io_open_read(&file, model->path[index]));
    enum status status = io_size(&file, &size);
    status = status == STATUS_OK ? read_length(&file, size, &length) : status;
    if (status == STATUS_OK) {
        text = malloc((size_t)length + 1);
        status = text != NULL ? io_pread(&file, text, (size_t)length, LENGTH_BYTES)
                              : no_memory(model->path[index]);
    }
    const enum status closed = io_close(&file);
    status = status == STATUS_OK ? closed : status;
    status = status == STATUS_OK ? parse_header(model, index, text, length, size) : status;
    free(text);
    return status;
}

/* --- a folder --- */

static enum status add_file(struct safetensors *model, const char *folder, const char *name)
{
    char path[MAX_PATH];
    char **grown = realloc(model->path, (size_t)(model->files + 1) * sizeof *grown);
    if (grown == NULL || snprintf(path, sizeof path, "%s/%s", folder, name) >= MAX_PATH) {
        model->path = grown != NULL ? grown : model->path;
        return status_fail(STATUS_RESOURCE, "%s/%s: out of memory, or the path is too long", folder,
                           name);
    }
    model->path = grown;
    model->path[model->files] = strdup(path);
    if (model->path[model->files] == NULL) {
        return no_memory(path);
    }
    model->files++;
    return STATUS_OK;
}

static enum status sort_tensors(struct safetensors *model)
{
    if (model->tensors > 0) {
        qsort(model->tensor, (size_t)model->tensors, sizeof *model->tensor, by_name);
    }
    for (int64_t i = 1; i < model->tensors; i++) {
        const struct safetensors_tensor *a = &model->tensor[i - 1], *b = &model->tensor[i];
        if (strcmp(a->name, b->name) == 0) {
            return status_fail(STATUS_DATA, "tensor '%s' is in %s and in %s", a->name,
                               model->path[a->file], model->path[b->file]);
        }
    }
    return STATUS_OK;
}

/* Names of shards are plain: an index leads nowhere else. */
static bool plain_name(const char *name)
{
    return name != NULL && name[0] != '\0' && name[0] != '.' && strchr(name, '/') == NULL &&
           strchr(name, '\\') == NULL && strlen(name) < SAFETENSORS_NAME_BYTES;
}

/* Every file that the map names, once, in order of their names. */
static enum status add_shards(struct safetensors *model, const char *folder, const char *index,
                              json_t *map)
{
    const char *name;
    json_t *value, *seen = json_object();
    enum status status = seen != NULL ? STATUS_OK : no_memory(index);
    json_object_foreach(map, name, value)
    {
        const char *file = json_string_value(value);
        if (status == STATUS_OK && !plain_name(file)) {
            status = status_fail(STATUS_DATA,
                                 "%s: tensor '%.*s' is said to be in '%.*s': a plain file name of "
                                 "this folder is expected",
                                 index, SAFETENSORS_NAME_BYTES, name, SAFETENSORS_NAME_BYTES,
                                 file != NULL ? file : "(not text)");
        }
        if (status == STATUS_OK && json_object_get(seen, file) == NULL) {
            status =
                json_object_set_new(seen, file, json_true()) == 0 ? STATUS_OK : no_memory(index);
        }
    }
    for (void *at = json_object_iter(seen); at != NULL && status == STATUS_OK;
         at = json_object_iter_next(seen, at)) {
        status = add_file(model, folder, json_object_iter_key(at));
    }
    json_decref(seen);
    return status;
}

/* The map and the shards' headers say the same. */
static enum status check_map(const struct safetensors *model, const char *index, json_t *map)
{
    const char *name;
    json_t *value;
    for (int64_t i = 0; i < model->tensors; i++) {
        const struct safetensors_tensor *tensor = &model->tensor[i];
        const char *path = model->path[tensor->file],
                   *file = json_string_value(json_object_get(map, tensor->name));
        if (file == NULL) {
            return status_fail(STATUS_DATA, "%s: tensor '%s' is not in %s", path, tensor->name,
                               index);
        }
        if (strcmp(strrchr(path, '/') + 1, file) != 0) {
            return status_fail(STATUS_DATA, "%s: tensor '%s' is said to be in %s, it is in %s",
                               index, tensor->name, file, path);
        }
    }
    json_object_foreach(map, name, value)
    {
        if (safetensors_find(model, name) == NULL) {
            return status_fail(STATUS_DATA, "%s: tensor '%.*s' is missing from %s", index,
                               SAFETENSORS_NAME_BYTES, name, json_string_value(value));
        }
    }
    return STATUS_OK;
}

static enum status read_headers(struct safetensors *model)
{
    for (int64_t i = 0; i < model->files; i++) {
        if (!io_exists(model->path[i])) {
            return status_fail(STATUS_DATA, "%s: missing: copy the whole model", model->path[i]);
        }
        TRY(read_header(model, i));
    }
    return sort_tensors(model);
}

static enum status open_index(struct safetensors *model, const char *folder, const char *index)
{
    json_t *json = NULL;
    TRY(json_text_read(&json, index, JSON_TEXT_INDEX_BYTES));
    json_t *map = json_object_get(json, "weight_map");
    enum status status =
        json_object_size(map) > 0
            ? STATUS_OK
            : status_fail(STATUS_DATA, "%s: no weight_map, or nothing in it", index);
    status = status == STATUS_OK ? add_shards(model, folder, index, map) : status;
    status = status == STATUS_OK ? read_headers(model) : status;
    status = status == STATUS_OK ? check_map(model, index, map) : status;
    json_decref(json);
    return status;
}

static enum status open_folder(struct safetensors *model, const char *folder)
{
    char single[MAX_PATH], index[MAX_PATH];
    if (snprintf(single, sizeof single, "%s/model.safetensors", folder) >= MAX_PATH ||
        snprintf(index, sizeof index, "%s/model.safetensors.index.json", folder) >= MAX_PATH) {
        return status_fail(STATUS_DATA, "path too long: %s", folder);
    }
    if (!io_exists(folder)) {
        return status_fail(STATUS_IO, "%s: no such folder", folder);
    }
    if (io_exists(index)) {
        return open_index(model, folder, index);
    }
    if (!io_exists(single)) {
        return status_fail(STATUS_DATA,
                           "%s: neither model.safetensors nor model.safetensors.index.json: not a "
                           "model folder with safetensors weights",
                           folder);
    }
    TRY(add_file(model, folder, "model.safetensors"));
    return read_headers(model);
}

enum status safetensors_open(struct safetensors *model, const char *folder)
{
    *model = (struct safetensors){.opened = -1};
    const enum status status = open_folder(model, folder);
    if (status != STATUS_OK) {
        safetensors_close(model);
    }
    return status;
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *model, const char *name)
{
    struct safetensors_tensor key = {0};
    if (strlen(name) >= sizeof key.name || model->tensors == 0) {
        return NULL;
    }
    snprintf(key.name, sizeof key.name, "%s", name);
    return bsearch(&key, model->tensor, (size_t)model->tensors, sizeof key, by_name);
}

enum status safetensors_read(struct safetensors *model, const struct safetensors_tensor *tensor,
                             int64_t first, void *data, size_t bytes)
{
    if (model->opened != tensor->file) {
        if (model->opened >= 0) {
            TRY(io_close(&model->open));
        }
        model->opened = -1;
        TRY(io_open_read(&model->open, model->path[tensor->file]));
        model->opened = tensor->file;
    }
    return io_pread(&model->open, data, bytes, tensor->offset + first);
}
