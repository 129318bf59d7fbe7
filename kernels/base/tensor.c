#include "kernels/base/tensor.h"

#include <assert.h>

static const struct {
    size_t bytes;
    const char *name;
} dtypes[DTYPE_COUNT] = {
    [DTYPE_F32] = {4, "float32"}, [DTYPE_BF16] = {2, "bfloat16"},      [DTYPE_I32] = {4, "int32"},
    [DTYPE_I64] = {8, "int64"},   [DTYPE_F64] = {8, "float64"},        [DTYPE_U8] = {1, "uint8"},
    [DTYPE_F16] = {2, "float16"}, [DTYPE_E4M3] = {1, "float8_e4m3fn"},
};

size_t dtype_bytes(enum dtype dtype)
{
    return dtypes[dtype].bytes;
}

const char *dtype_name(enum dtype dtype)
{
    return dtypes[dtype].name;
}

struct tensor tensor_1d(void *data, enum dtype dtype, int64_t count)
{
    return (struct tensor){.data = data, .dtype = dtype, .ndim = 1, .dim = {count, 1, 1, 1}};
}

struct tensor tensor_2d(void *data, enum dtype dtype, int64_t rows, int64_t cols)
{
    return (struct tensor){.data = data, .dtype = dtype, .ndim = 2, .dim = {rows, cols, 1, 1}};
}

int64_t tensor_count(const struct tensor *tensor)
{
    int64_t count = 1;
    for (int i = 0; i < tensor->ndim; i++) {
        count *= tensor->dim[i];
    }
    return count;
}

size_t tensor_bytes(const struct tensor *tensor)
{
    return (size_t)tensor_count(tensor) * dtype_bytes(tensor->dtype);
}

bool tensor_is(const struct tensor *tensor, enum dtype dtype, int64_t rows, int64_t cols)
{
    return tensor->dtype == dtype && tensor->ndim == 2 && tensor->dim[0] == rows &&
           tensor->dim[1] == cols;
}

struct tensor tensor_rows(const struct tensor *tensor, int64_t first, int64_t count)
{
    assert(tensor->ndim == 2 && first >= 0 && count >= 0 && first + count <= tensor->dim[0]);
    char *data =
        (char *)tensor->data + (size_t)(first * tensor->dim[1]) * dtype_bytes(tensor->dtype);
    return tensor_2d(data, tensor->dtype, count, tensor->dim[1]);
}
