/* trace_file: what a run computed, tensor by tensor and step by step, in one HDF5 file that a
 * killed writer leaves readable.
 *
 * Four datasets. names [n]: what tensors are called. records [*, 9] int64: struct trace_record, in
 * the order of computation. values [*] bytes: what is kept of their elements. steps [*, 5] int64:
 * struct trace_step: a row for each step that is whole, the last thing written of it. The file only
 * ever grows, by HDF5's single-writer rules (SWMR), so it can be read while it is written (h5py:
 * swmr=True) and after its writer died; what stands behind the last whole step is ignored.
 * Attributes: format, format_version, samples.
 */
#ifndef CHECKPOINTS_TRACE_FILE_H
#define CHECKPOINTS_TRACE_FILE_H

#include "kernels/base/status.h"
#include "kernels/base/tensor.h"

enum { TRACE_NAME_BYTES = 112, TRACE_SAMPLES = 64 };

/* One tensor of a step. */
struct trace_record {
    int64_t unit;       /* micro-batch of the global batch; -1: of the whole step */
    int64_t layer;      /* block; -1: of none */
    int64_t name;       /* of the file's names */
    int64_t dtype;      /* enum dtype: F32, BF16, I32 or F64 */
    int64_t rows, cols; /* row-major */
    int64_t hash;       /* tensor_hash of its elements; of F64: of their halves */
    int64_t value;      /* byte of `values` where what is kept begins */
    int64_t kept;       /* elements kept: none, all, or TRACE_SAMPLES at trace_position */
};
enum { TRACE_COLUMNS = sizeof(struct trace_record) / sizeof(int64_t) };

struct trace_step {
    int64_t step, first, records;
    int64_t end;   /* bytes of values so far */
    int64_t start; /* 1: of this step only what the first one traced started from; else 0 */
};

struct trace_file; /* hides hdf5.h */

/* Which of `count` elements sample `sample` is: spread evenly, the first among them. */
int64_t trace_position(int64_t count, int64_t sample);
/* The hash of elements [first, first + count) of a tensor: those of its parts add up. Data as it
 * lies in memory. */
int64_t trace_hash(const void *data, enum dtype dtype, int64_t first, int64_t count);

/* Makes a new file, which must not be there. Errors: STATUS_IO. */
enum status trace_file_create(struct trace_file **file, const char *path,
                              char (*names)[TRACE_NAME_BYTES], int64_t count)
    __attribute__((warn_unused_result));
/* Adds to the step under way; record[].value counts from values[0]. Errors: STATUS_IO. */
enum status trace_file_append(struct trace_file *file, struct trace_record *record, int64_t records,
                              const void *values, int64_t bytes)
    __attribute__((warn_unused_result));
/* What was added since the last step is step `step`, whole. Errors: STATUS_IO. */
enum status trace_file_end_step(struct trace_file *file, int64_t step, bool start)
    __attribute__((warn_unused_result));
int64_t trace_file_bytes(const struct trace_file *file); /* of records and values, so far */

/* For reading. Errors: STATUS_IO when it is not there, STATUS_DATA when it is no trace, damaged, or
 * of another version. */
enum status trace_file_open(struct trace_file **file, const char *path)
    __attribute__((warn_unused_result));
int64_t trace_file_steps(const struct trace_file *file, const struct trace_step **steps);
const char *trace_file_name(const struct trace_file *file, int64_t name);
int64_t trace_file_names(const struct trace_file *file);
/* record[step->records]; checked to lie inside the file. Errors: STATUS_DATA. */
enum status trace_file_records(struct trace_file *file, const struct trace_step *step,
                               struct trace_record *record) __attribute__((warn_unused_result));
/* The kept elements of a record as they lie in memory. Errors: STATUS_DATA. */
enum status trace_file_values(struct trace_file *file, const struct trace_record *record,
                              void *values) __attribute__((warn_unused_result));

/* Accepts NULL. Of a file that was written: the status of its last bytes. */
enum status trace_file_close(struct trace_file *file) __attribute__((warn_unused_result));

#endif
