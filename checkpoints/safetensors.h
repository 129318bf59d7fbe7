/* safetensors: the weight files of the Hugging Face world, read strictly and written in blocks.
 *
 * A file is a 64-bit little-endian header length, that many bytes of JSON ({name: {dtype, shape,
 * data_offsets}}), and raw row-major little-endian data without holes or overlaps. A model is a
 * folder: model.safetensors, or model.safetensors.index.json and the shards that it names. Nothing
 * of a file is believed before it is checked against the file's size.
 */
#ifndef CHECKPOINTS_SAFETENSORS_H
#define CHECKPOINTS_SAFETENSORS_H

#include "kernels/base/io.h"
#include "kernels/base/tensor.h"
#include "parallel/comm.h"

enum { SAFETENSORS_NAME_BYTES = 192, SAFETENSORS_DIMS = 4 };
#define SAFETENSORS_HEADER_BYTES ((int64_t)100000000) /* longest header */
#define SAFETENSORS_SHARD_BYTES                                                                    \
    ((int64_t)5000000000) /* of data per file, when nothing else is said */

struct safetensors_tensor {
    char name[SAFETENSORS_NAME_BYTES];
    enum dtype dtype;
    int ndim; /* 0 to SAFETENSORS_DIMS */
    int64_t shape[SAFETENSORS_DIMS];
    int64_t file;   /* index of its file */
    int64_t offset; /* first byte in that file */
    int64_t bytes;
};

struct safetensors {
    struct safetensors_tensor *tensor; /* [tensors] owned, sorted by name */
    int64_t tensors;
    char **path; /* [files] owned, each owned */
    int64_t files;
    struct io_file open; /* the file read last */
    int64_t opened;      /* its index, -1: none */
};

/* Local. Reads and checks all headers of the model in `folder`. Errors name file, tensor and
 * values: STATUS_DATA (not a model folder, or damaged), STATUS_IO, STATUS_RESOURCE. */
enum status safetensors_open(struct safetensors *model, const char *folder)
    __attribute__((warn_unused_result));
void safetensors_close(struct safetensors *model); /* accepts a zeroed one; may be called twice */

/* NULL: not there. */
const struct safetensors_tensor *safetensors_find(const struct safetensors *model,
                                                  const char *name);

/* Local. Bytes [first, first + bytes) of a tensor. Errors: STATUS_IO, STATUS_DATA when the file
 * became shorter meanwhile. */
enum status safetensors_read(struct safetensors *model, const struct safetensors_tensor *tensor,
                             int64_t first, void *data, size_t bytes)
    __attribute__((warn_unused_result));

const char *safetensors_dtype(enum dtype dtype); /* "F32", "BF16", ...; NULL: has none */

/* Fills `data` with bytes [first, first + bytes) of tensor `index`; blocks of a tensor come in
 * order, each once. */
typedef enum status (*safetensors_source)(void *context, int64_t index, int64_t first, void *data,
                                          size_t bytes);

struct safetensors_figures {
    int64_t shards, bytes; /* of data, all ranks */
};

/* Collective. Writes tensors (name, dtype, ndim, shape; the rest is ignored) in this order into
 * `folder`, in files of at most shard_bytes of data (a larger tensor is alone): model.safetensors
 * when one file does, else shards and, last, the index. Files are shared out over the ranks; each
 * is written beside, synced and renamed. Errors are agreed. */
enum status safetensors_save(struct comm *comm, const char *folder,
                             const struct safetensors_tensor *tensors, int64_t count,
                             int64_t shard_bytes, safetensors_source source, void *context,
                             struct safetensors_figures *figures)
    __attribute__((warn_unused_result));

#endif
