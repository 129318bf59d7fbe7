#include "checkpoints/trace_file.h"

#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/h5.h"
#include "checkpoints/tensor_hash.h"
#include "kernels/base/io.h"

enum { FORMAT_VERSION = 1, MAX_PATH = 4096, READ_ATTEMPTS = 8 };
static const char FORMAT[] = "switchyard trace";

/* The datasets that grow: rows of `width` elements, in chunks of `chunk` rows. */
enum table { RECORDS, VALUES, STEPS, TABLES };
enum { STEP_COLUMNS = sizeof(struct trace_step) / sizeof(int64_t) };
static const struct {
    const char *name;
    hsize_t width, chunk; /* width 1: one dimension, of bytes */
} tables[TABLES] = {[RECORDS] = {"records", TRACE_COLUMNS, 1024},
                    [VALUES] = {"values", 1, 1 << 18},
                    [STEPS] = {"steps", STEP_COLUMNS, 256}};

struct trace_file {
    char path[MAX_PATH];
    hid_t file, set[TABLES];
    int64_t rows[TABLES];            /* written, or found */
    int64_t begun;                   /* first record of the step under way */
    char (*names)[TRACE_NAME_BYTES]; /* owned; for reading */
    int64_t name_count;
    struct trace_step *steps; /* owned; for reading */
};

int64_t trace_position(int64_t count, int64_t sample)
{
    return count / TRACE_SAMPLES * sample + count % TRACE_SAMPLES * sample / TRACE_SAMPLES;
}

int64_t trace_hash(const void *data, enum dtype dtype, int64_t first, int64_t count)
{
    const size_t width = dtype_bytes(dtype), parts = width > 4 ? width / 4 : 1;
    struct tensor_hash hash;
    tensor_hash_start(&hash, first * (int64_t)parts, width / parts);
    tensor_hash_add(&hash, data, (size_t)count * width);
    return (int64_t)hash.sum;
}

static hid_t memory_type(enum table table)
{
    return table == VALUES ? H5T_NATIVE_UCHAR : H5T_NATIVE_INT64;
}

static int dimensions(enum table table)
{
    return tables[table].width > 1 ? 2 : 1;
}

/* --- writing --- */

static enum status cannot_write(const struct trace_file *file)
{
    return status_fail(STATUS_IO, "%s: cannot write the trace: is the disk full, the folder there?",
                       file->path);
}

static hid_t make_table(hid_t file, enum table table)
{
    const hsize_t none[2] = {0, tables[table].width},
                  most[2] = {H5S_UNLIMITED, tables[table].width},
                  chunk[2] = {tables[table].chunk, tables[table].width};
    const hid_t list = H5Pcreate(H5P_DATASET_CREATE),
                space = H5Screate_simple(dimensions(table), none, most);
    H5Pset_chunk(list, dimensions(table), chunk);
    H5Pset_obj_track_times(list, false);
    const hid_t set =
        H5Dcreate2(file, tables[table].name, table == VALUES ? H5T_STD_U8LE : H5T_STD_I64LE, space,
                   H5P_DEFAULT, list, H5P_DEFAULT);
    H5Sclose(space);
    H5Pclose(list);
    return set;
}

static bool write_names(hid_t file, char (*names)[TRACE_NAME_BYTES], int64_t count)
{
    const hsize_t dim = (hsize_t)count;
    const hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate_simple(1, &dim, NULL);
    H5Tset_size(type, TRACE_NAME_BYTES);
    const hid_t set = H5Dcreate2(file, "names", type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    const bool good = set >= 0 && H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, names) >= 0;
    H5Dclose(set);
    H5Sclose(space);
    H5Tclose(type);
    return good;
}

static void describe(hid_t file)
{
    const int64_t version = FORMAT_VERSION, samples = TRACE_SAMPLES;
    h5_set_text(file, "format", FORMAT);
    h5_set_ints(file, "format_version", &version, 1);
    h5_set_ints(file, "samples", &samples, 1);
}

/* A file with all its objects: from here on it only grows. */
static bool begin(struct trace_file *file, char (*names)[TRACE_NAME_BYTES], int64_t count)
{
    const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);
    file->file = H5Fcreate(file->path, H5F_ACC_EXCL, H5P_DEFAULT, access);
    H5Pclose(access);
    bool good = file->file >= 0 && write_names(file->file, names, count);
    if (!good) {
        return false;
    }
    describe(file->file);
    for (int t = 0; t < TABLES && good; t++) {
        file->set[t] = make_table(file->file, (enum table)t);
        good = file->set[t] >= 0;
    }
    return good && H5Fstart_swmr_write(file->file) >= 0;
}

static struct trace_file *new_file(const char *path)
{
    struct trace_file *file = calloc(1, sizeof *file);
    if (file != NULL) {
        snprintf(file->path, sizeof file->path, "%s", path);
        file->file = -1;
        for (int t = 0; t < TABLES; t++) {
            file->set[t] = -1;
        }
        H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    }
    return file;
}

enum status trace_file_create(struct trace_file **file, const char *path,
                              char (*names)[TRACE_NAME_BYTES], int64_t count)
{
    *file = new_file(path);
    if (*file == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory");
    }
    if (begin(*file, names, count)) {
        return STATUS_OK;
    }
    const enum status status = cannot_write(*file), ignored = trace_file_close(*file);
    (void)ignored;
    *file = NULL;
    return status;
}

static bool grow(struct trace_file *file, enum table table, int64_t rows, const void *data)
{
    const hsize_t first[2] = {(hsize_t)file->rows[table], 0},
                  count[2] = {(hsize_t)rows, tables[table].width},
                  all[2] = {(hsize_t)(file->rows[table] + rows), tables[table].width};
    if (rows == 0) {
        return true;
    }
    if (H5Dset_extent(file->set[table], all) < 0) {
        return false;
    }
    const hid_t to = H5Dget_space(file->set[table]),
                from = H5Screate_simple(dimensions(table), count, NULL);
    H5Sselect_hyperslab(to, H5S_SELECT_SET, first, NULL, count, NULL);
    const bool good =
        H5Dwrite(file->set[table], memory_type(table), from, to, H5P_DEFAULT, data) >= 0;
    H5Sclose(from);
    H5Sclose(to);
    file->rows[table] += rows;
    return good;
}

enum status trace_file_append(struct trace_file *file, struct trace_record *record, int64_t records,
                              const void *values, int64_t bytes)
{
    for (int64_t i = 0; i < records; i++) {
        record[i].value += file->rows[VALUES];
    }
    return grow(file, VALUES, bytes, values) && grow(file, RECORDS, records, record)
               ? STATUS_OK
               : cannot_write(file);
}

enum status trace_file_end_step(struct trace_file *file, int64_t step, bool start)
{
    const struct trace_step row = {.step = step,
                                   .first = file->begun,
                                   .records = file->rows[RECORDS] - file->begun,
                                   .end = file->rows[VALUES],
                                   .start = start};
    file->begun = file->rows[RECORDS];
    /* in this order, whatever a killed writer leaves undone */
    return H5Dflush(file->set[VALUES]) >= 0 && H5Dflush(file->set[RECORDS]) >= 0 &&
                   grow(file, STEPS, 1, &row) && H5Dflush(file->set[STEPS]) >= 0
               ? STATUS_OK
               : cannot_write(file);
}

int64_t trace_file_bytes(const struct trace_file *file)
{
    return file->rows[VALUES] + file->rows[RECORDS] * (int64_t)sizeof(struct trace_record);
}

/* --- reading --- */

static enum status damaged(const struct trace_file *file, const char *why)
{
    return status_fail(STATUS_DATA, "%s: %s: not a trace (debug.trace), or damaged", file->path,
                       why);
}

static bool is_trace(hid_t file)
{
    char text[sizeof FORMAT] = "";
    int64_t version = 0, samples = 0;
    const hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, sizeof text);
    struct {
        const char *name;
        hid_t type;
        void *to;
    } wanted[] = {{"format", type, text},
                  {"format_version", H5T_NATIVE_INT64, &version},
                  {"samples", H5T_NATIVE_INT64, &samples}};
    bool good = true;
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0] && good; i++) {
        const hid_t attribute = H5Aopen(file, wanted[i].name, H5P_DEFAULT),
                    space = attribute >= 0 ? H5Aget_space(attribute) : -1;
        good = space >= 0 && H5Sget_simple_extent_npoints(space) == 1 &&
               H5Aread(attribute, wanted[i].type, wanted[i].to) >= 0;
        H5Sclose(space);
        H5Aclose(attribute);
    }
    H5Tclose(type);
    return good && strcmp(text, FORMAT) == 0 && version == FORMAT_VERSION &&
           samples == TRACE_SAMPLES;
}

static bool find_table(struct trace_file *file, enum table table)
{
    hsize_t dim[2] = {0, 1};
    file->set[table] = H5Dopen2(file->file, tables[table].name, H5P_DEFAULT);
    const hid_t space = file->set[table] >= 0 ? H5Dget_space(file->set[table]) : -1,
                type = file->set[table] >= 0 ? H5Dget_type(file->set[table]) : -1;
    const bool good = space >= 0 && H5Sget_simple_extent_ndims(space) == dimensions(table) &&
                      H5Sget_simple_extent_dims(space, dim, NULL) >= 0 &&
                      dim[1] == tables[table].width &&
                      H5Tequal(type, table == VALUES ? H5T_STD_U8LE : H5T_STD_I64LE) > 0;
    file->rows[table] = (int64_t)dim[0];
    H5Tclose(type);
    H5Sclose(space);
    return good;
}

static bool read_rows(const struct trace_file *file, enum table table, int64_t first, int64_t rows,
                      void *data)
{
    const hsize_t from[2] = {(hsize_t)first, 0}, count[2] = {(hsize_t)rows, tables[table].width};
    if (rows == 0) {
        return true;
    }
    const hid_t stored = H5Dget_space(file->set[table]),
                memory = H5Screate_simple(dimensions(table), count, NULL);
    H5Sselect_hyperslab(stored, H5S_SELECT_SET, from, NULL, count, NULL);
    const bool good =
        H5Dread(file->set[table], memory_type(table), memory, stored, H5P_DEFAULT, data) >= 0;
    H5Sclose(memory);
    H5Sclose(stored);
    return good;
}

static enum status read_names(struct trace_file *file)
{
    const hid_t set = H5Dopen2(file->file, "names", H5P_DEFAULT),
                space = set >= 0 ? H5Dget_space(set) : -1, type = set >= 0 ? H5Dget_type(set) : -1;
    const hssize_t count = space >= 0 ? H5Sget_simple_extent_npoints(space) : -1;
    bool good =
        count >= 0 && H5Tget_class(type) == H5T_STRING && H5Tget_size(type) == TRACE_NAME_BYTES;
    if (good) {
        file->names = calloc((size_t)count + 1, sizeof *file->names);
        good = file->names != NULL &&
               H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, file->names) >= 0;
        file->name_count = count;
    }
    for (int64_t i = 0; good && i < count; i++) {
        file->names[i][TRACE_NAME_BYTES - 1] = '\0';
    }
    H5Tclose(type);
    H5Sclose(space);
    H5Dclose(set);
    return good ? STATUS_OK : damaged(file, "no names");
}

/* Steps follow each other and lie inside the file. */
static enum status read_steps(struct trace_file *file)
{
    file->steps = calloc((size_t)file->rows[STEPS] + 1, sizeof *file->steps);
    if (file->steps == NULL || !read_rows(file, STEPS, 0, file->rows[STEPS], file->steps)) {
        return damaged(file, "its steps cannot be read");
    }
    int64_t record = 0, byte = 0, last = INT64_MIN;
    for (int64_t i = 0; i < file->rows[STEPS]; i++) {
        const struct trace_step *step = &file->steps[i];
        if (step->step <= last || step->first != record || step->records < 0 ||
            step->records > file->rows[RECORDS] - record || step->end < byte ||
            step->end > file->rows[VALUES]) {
            return damaged(file, "a step reaches beyond its end");
        }
        last = step->step;
        record += step->records;
        byte = step->end;
    }
    return STATUS_OK;
}

static enum status read_file(struct trace_file *file)
{
    if (!io_exists(file->path)) {
        return status_fail(STATUS_IO, "%s: no such file", file->path);
    }
    /* As one that may be written, or whose writer died. What is damaged is not waited for: HDF5
     * would read it a hundred times. */
    const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_metadata_read_attempts(access, READ_ATTEMPTS);
    file->file = H5Fopen(file->path, H5F_ACC_RDONLY | H5F_ACC_SWMR_READ, access);
    H5Pclose(access);
    if (file->file < 0 || !is_trace(file->file)) {
        return damaged(file, "no HDF5 file of this format");
    }
    TRY(read_names(file));
    for (int t = TABLES - 1; t >= 0; t--) { /* steps first: what they name was written before */
        if (!find_table(file, (enum table)t)) {
            return damaged(file, tables[t].name);
        }
    }
    return read_steps(file);
}

enum status trace_file_open(struct trace_file **file, const char *path)
{
    *file = new_file(path);
    if (*file == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory");
    }
    const enum status status = read_file(*file);
    if (status != STATUS_OK) {
        const enum status ignored = trace_file_close(*file);
        (void)ignored;
        *file = NULL;
    }
    return status;
}

int64_t trace_file_steps(const struct trace_file *file, const struct trace_step **steps)
{
    *steps = file->steps;
    return file->rows[STEPS];
}

const char *trace_file_name(const struct trace_file *file, int64_t name)
{
    return file->names[name];
}

int64_t trace_file_names(const struct trace_file *file)
{
    return file->name_count;
}

static bool is_whole(const struct trace_file *file, const struct trace_record *record, int64_t end)
{
    const bool known = record->dtype == DTYPE_F32 || record->dtype == DTYPE_BF16 ||
                       record->dtype == DTYPE_I32 || record->dtype == DTYPE_F64;
    if (!known || record->name < 0 || record->name >= file->name_count || record->rows < 0 ||
        record->cols < 1 || record->rows > INT64_MAX / record->cols || record->value < 0 ||
        record->kept < 0 || record->value > end) {
        return false;
    }
    const int64_t count = record->rows * record->cols;
    return (record->kept == 0 || record->kept == count ||
            (record->kept == TRACE_SAMPLES && count > TRACE_SAMPLES)) &&
           record->kept <= (end - record->value) / (int64_t)dtype_bytes((enum dtype)record->dtype);
}

enum status trace_file_records(struct trace_file *file, const struct trace_step *step,
                               struct trace_record *record)
{
    if (!read_rows(file, RECORDS, step->first, step->records, record)) {
        return damaged(file, "its records cannot be read");
    }
    for (int64_t i = 0; i < step->records; i++) {
        if (!is_whole(file, &record[i], step->end)) {
            return damaged(file, "a record names what is not there");
        }
    }
    return STATUS_OK;
}

enum status trace_file_values(struct trace_file *file, const struct trace_record *record,
                              void *values)
{
    const int64_t bytes = record->kept * (int64_t)dtype_bytes((enum dtype)record->dtype);
    return read_rows(file, VALUES, record->value, bytes, values)
               ? STATUS_OK
               : damaged(file, "its values cannot be read");
}

enum status trace_file_close(struct trace_file *file)
{
    bool good = true;
    if (file == NULL) {
        return STATUS_OK;
    }
    for (int t = 0; t < TABLES; t++) {
        good = (file->set[t] < 0 || H5Dclose(file->set[t]) >= 0) && good;
    }
    good = (file->file < 0 || H5Fclose(file->file) >= 0) && good;
    const enum status status = good ? STATUS_OK : cannot_write(file);
    free(file->names);
    free(file->steps);
    free(file);
    return status;
}
