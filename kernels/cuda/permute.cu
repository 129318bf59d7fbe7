#include "kernels/cuda/copy_rows.cuh"
#include "kernels/cuda/rows.cuh"

/* One row per threadIdx.y in units of U (2 to 16 bytes). Bytes: the rows once in, once out, 4 per
 * index. No arithmetic: bound by memory. */
template <class U>
__global__ void __launch_bounds__(TILE_THREADS) copy_rows_kernel(struct row_copy copy)
{
    const int64_t n = tile_row();
    if (n >= copy.rows) {
        return;
    }
    const int64_t to = copy.y_row != nullptr ? copy.y_row[n] : n;
    const int64_t from = copy.x_row != nullptr ? copy.x_row[n] : n;
    if (to < 0) {
        return;
    }
    if (to >= copy.y_rows || from >= copy.x_rows || (from < 0 && !copy.zeros)) {
        __trap();
    }
    U *y = (U *)((char *)copy.y + to * copy.y_stride);
    const U *x = (const U *)((const char *)copy.x + from * copy.x_stride);
    const int64_t units = copy.bytes / (int64_t)sizeof(U);
    for (int64_t i = threadIdx.x; i < units; i += blockDim.x) {
        y[i] = from < 0 ? U{} : x[i];
    }
}

void copy_rows(void *stream, struct row_copy copy)
{
    if (copy.rows == 0 || copy.bytes == 0) {
        return;
    }
    const uint64_t all = (uint64_t)(uintptr_t)copy.y | (uint64_t)(uintptr_t)copy.x |
                         (uint64_t)copy.bytes | (uint64_t)copy.y_stride | (uint64_t)copy.x_stride;
    const int unit = all % 16 == 0 ? 16 : all % 4 == 0 ? 4 : 2;
    const struct tile tile = tile_of(copy.rows, copy.bytes / unit);
    const cudaStream_t queue = (cudaStream_t)stream;
    assert(all % 2 == 0);
    if (unit == 16) {
        LAUNCH(copy_rows_kernel<uint4>, tile.grid, tile.block, 0, queue, copy);
    } else if (unit == 4) {
        LAUNCH(copy_rows_kernel<uint32_t>, tile.grid, tile.block, 0, queue, copy);
    } else {
        LAUNCH(copy_rows_kernel<uint16_t>, tile.grid, tile.block, 0, queue, copy);
    }
}

void cuda_gather_rows(void *stream, struct tensor y, struct tensor x, const int32_t *row)
{
    const int64_t bytes = y.dim[1] * (int64_t)dtype_bytes(y.dtype);
    assert(x.dtype == y.dtype && x.dim[1] == y.dim[1]);
    copy_rows(stream, {y.data, x.data, y.dim[0], bytes, bytes, bytes, nullptr, row, y.dim[0],
                       x.dim[0], true});
}

void cuda_scatter_rows(void *stream, struct tensor y, const void *x, int64_t x_stride,
                       const int32_t *row, int64_t rows)
{
    const int64_t element = (int64_t)dtype_bytes(y.dtype), bytes = y.dim[1] * element;
    copy_rows(stream, {y.data, x, rows, bytes, bytes, x_stride * element, row, nullptr, y.dim[0],
                       rows, false});
}

void cuda_copy_columns(void *stream, struct tensor y, int64_t y_first, struct tensor x,
                       int64_t x_first, int64_t columns)
{
    const int64_t element = (int64_t)dtype_bytes(y.dtype), rows = y.dim[0];
    assert(x.dtype == y.dtype && x.dim[0] == rows);
    assert(y_first + columns <= y.dim[1] && x_first + columns <= x.dim[1]);
    copy_rows(stream, {(char *)y.data + y_first * element, (const char *)x.data + x_first * element,
                       rows, columns * element, y.dim[1] * element, x.dim[1] * element, nullptr,
                       nullptr, rows, rows, false});
}

/* One row of y per threadIdx.y; slots are added in their order, as on the CPU. Bytes per token: K
 * rows in, one out. FLOPs: 2 K per element. Bound by memory. */
template <class T, int V>
__global__ void __launch_bounds__(TILE_THREADS)
    combine_rows_kernel(T *y, const T *__restrict__ x, const int32_t *__restrict__ slot_row,
                        const float *__restrict__ weight, int64_t rows, int64_t width, int top_k)
{
    const int64_t n = tile_row();
    if (n >= rows) {
        return;
    }
    for (int64_t i = threadIdx.x * V; i < width; i += blockDim.x * V) {
        float sum[V] = {};
        for (int64_t slot = n * top_k; slot < (n + 1) * top_k; slot++) {
            const int64_t row = slot_row[slot];
            if (row >= 0) {
                const float scale = weight != nullptr ? weight[slot] : 1.0F;
                float in[V];
                load(in, x + row * width + i);
#pragma unroll
                for (int j = 0; j < V; j++) {
                    sum[j] += scale * in[j];
                }
            }
        }
        store(y + n * width + i, sum);
    }
}

void cuda_combine_rows(void *stream, struct tensor y, struct tensor x, const int32_t *slot_row,
                       const float *weight, int64_t top_k)
{
    const int64_t rows = y.dim[0], width = y.dim[1];
    assert(x.dtype == y.dtype && x.dim[1] == width);
    if (rows == 0 || width == 0) {
        return;
    }
    const bool wide = width % pack_of(y.dtype) == 0 && aligned(y.data) && aligned(x.data);
    dispatch(y.dtype, wide, [&](auto kind) {
        using T = typename decltype(kind)::type;
        constexpr int V = decltype(kind)::pack;
        const struct tile tile = tile_of(rows, width / V);
        LAUNCH((combine_rows_kernel<T, V>), tile.grid, tile.block, 0, (cudaStream_t)stream,
               (T *)y.data, (const T *)x.data, slot_row, weight, rows, width, (int)top_k);
    });
}

enum { SLOT_WARPS = 8 };

/* One warp per slot; a token's slots stand in one block, so dy comes from memory once. Bytes per
 * slot: a row of x in, one of dx out, 1 / K of dy. FLOPs: 3 per element. Bound by memory. */
template <class T, int V>
__global__ void __launch_bounds__(SLOT_WARPS * 32)
    combine_rows_backward_kernel(T *dx, float *dweight, const T *__restrict__ dy,
                                 const T *__restrict__ x, const int32_t *__restrict__ slot_row,
                                 const float *__restrict__ weight, int64_t slots, int64_t width,
                                 int top_k)
{
    const int lane = threadIdx.x % 32;
    const int64_t slot = (int64_t)blockIdx.x * SLOT_WARPS + threadIdx.x / 32;
    if (slot >= slots) {
        return;
    }
    const int64_t row = slot_row[slot];
    if (row < 0) {
        if (lane == 0) {
            dweight[slot] = 0;
        }
        return;
    }
    const float scale = weight[slot];
    const int64_t from = slot / top_k * width;
    float sum = 0;
    for (int64_t i = lane * V; i < width; i += 32 * V) {
        float grad[V], in[V];
        load(grad, dy + from + i);
        load(in, x + row * width + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            sum += grad[j] * in[j];
            grad[j] *= scale;
        }
        if (dx != nullptr) {
            store(dx + row * width + i, grad);
        }
    }
    sum = warp_sum(sum);
    if (lane == 0) {
        dweight[slot] = sum;
    }
}

void cuda_combine_rows_backward(void *stream, struct tensor dx, float *dweight, struct tensor dy,
                                struct tensor x, const int32_t *slot_row, const float *weight,
                                int64_t top_k)
{
    const int64_t slots = dy.dim[0] * top_k, width = dy.dim[1];
    assert(dx.dtype == dy.dtype && x.dtype == dy.dtype && dx.dim[1] == width && x.dim[1] == width);
    if (slots == 0) {
        return;
    }
    const bool wide =
        width % pack_of(dy.dtype) == 0 && aligned(dx.data) && aligned(dy.data) && aligned(x.data);
    dispatch(dy.dtype, wide, [&](auto kind) {
        using T = typename decltype(kind)::type;
        constexpr int V = decltype(kind)::pack;
        LAUNCH((combine_rows_backward_kernel<T, V>),
               (unsigned)((slots + SLOT_WARPS - 1) / SLOT_WARPS), SLOT_WARPS * 32, 0,
               (cudaStream_t)stream, (T *)dx.data, dweight, (const T *)dy.data, (const T *)x.data,
               slot_row, weight, slots, width, (int)top_k);
    });
}
