#include "kernels/cuda/rows.cuh"

enum { MAX_WIDTH = 32768, BLOCKS = 512, BLOCK_ROWS = 8, SUM_PARTS = 32 };
enum { COLUMNS = 32, LANES = 8 }; /* of a block that adds the partial sums of dw */

/* One block per row; each thread reads its part twice, the second time from the cache. Bytes per
 * element: x and delta in, sum and y out. FLOPs: about 6. Bound by memory. */
template <class T, int V>
__global__ void __launch_bounds__(256)
    norm_forward_kernel(T *y, T *sum, float *rstd, const T *x, const T *delta,
                        const T *__restrict__ w, float eps, int64_t width)
{
    SMEM(float, part, [SUM_PARTS]);
    const int64_t n = blockIdx.x, row = n * width;
    float squares = 0;
    for (int64_t i = threadIdx.x * V; i < width; i += blockDim.x * V) {
        float a[V];
        load(a, x + row + i);
        if (delta != nullptr) {
            float b[V];
            load(b, delta + row + i);
#pragma unroll
            for (int j = 0; j < V; j++) {
                a[j] = round_to<T>(a[j] + b[j]);
            }
            store(sum + row + i, a);
        }
#pragma unroll
        for (int j = 0; j < V; j++) {
            squares += a[j] * a[j];
        }
    }
    const float r = 1.0F / sqrtf(block_sum(squares, part) / (float)width + eps);
    const T *in = delta != nullptr ? sum : x;
    for (int64_t i = threadIdx.x * V; i < width; i += blockDim.x * V) {
        float a[V], scale[V];
        load(a, in + row + i);
        load(scale, w + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            a[j] = round_to<T>(a[j] * r) * scale[j]; /* the cast stands before the weight */
        }
        store(y + row + i, a);
    }
    if (threadIdx.x == 0) {
        rstd[n] = r;
    }
}

void cuda_norm_forward(void *stream, struct tensor y, struct tensor sum, float *rstd,
                       struct tensor x, struct tensor delta, struct tensor w, float eps)
{
    const int64_t rows = x.dim[0], width = x.dim[1];
    assert(tensor_count(&w) == width && y.dim[0] == rows && y.dtype == x.dtype);
    assert(w.dtype == x.dtype && (delta.data == nullptr || delta.dtype == x.dtype));
    if (rows == 0) {
        return;
    }
    const bool wide = width % pack_of(x.dtype) == 0 && aligned(y.data) && aligned(x.data) &&
                      aligned(w.data) && aligned(delta.data) &&
                      (delta.data == nullptr || aligned(sum.data));
    dispatch(x.dtype, wide, [&](auto kind) {
        using T = typename decltype(kind)::type;
        constexpr int V = decltype(kind)::pack;
        LAUNCH((norm_forward_kernel<T, V>), (unsigned)rows, row_threads(width / V), 0,
               (cudaStream_t)stream, (T *)y.data, (T *)sum.data, rstd, (const T *)x.data,
               (const T *)delta.data, (const T *)w.data, eps, width);
    });
}

/* dx += r (g - x r^2 mean(g x)), g = dy w; dw += dy x r. A block takes `block_rows` rows, each
 * thread the same columns of all of them, and keeps its part of dw in shared memory: one row of
 * `partial` per block. Bytes per element: dx in and out, dy and x in (again from the cache), 4 /
 * block_rows of partial. FLOPs: about 10. Bound by memory. */
template <class T, int V>
__global__ void __launch_bounds__(256)
    norm_backward_kernel(T *dx, float *partial, const T *__restrict__ dy, const T *__restrict__ x,
                         const float *__restrict__ rstd, const T *__restrict__ w, int64_t rows,
                         int64_t width, int64_t block_rows)
{
    SMEM(float, part, [SUM_PARTS]);
    SMEM_DYN(dynamic);
    float *dw = (float *)dynamic;
    const int64_t first = threadIdx.x * V, step = blockDim.x * V;
    for (int64_t i = first; i < width; i += step) {
#pragma unroll
        for (int j = 0; j < V; j++) {
            dw[i + j] = 0;
        }
    }
    const int64_t begin = (int64_t)blockIdx.x * block_rows;
    for (int64_t n = begin; n < min(begin + block_rows, rows); n++) {
        const int64_t row = n * width;
        const float r = rstd[n];
        float dot = 0;
        for (int64_t i = first; i < width; i += step) {
            float grad[V], in[V], scale[V];
            load(grad, dy + row + i);
            load(in, x + row + i);
            load(scale, w + i);
#pragma unroll
            for (int j = 0; j < V; j++) {
                dot += grad[j] * scale[j] * in[j];
                dw[i + j] += grad[j] * in[j] * r;
            }
        }
        const float mean = block_sum(dot, part) / (float)width * r * r;
        for (int64_t i = first; i < width; i += step) {
            float out[V], grad[V], in[V], scale[V];
            load(out, dx + row + i);
            load(grad, dy + row + i);
            load(in, x + row + i);
            load(scale, w + i);
#pragma unroll
            for (int j = 0; j < V; j++) {
                out[j] += r * (grad[j] * scale[j] - in[j] * mean);
            }
            store(dx + row + i, out);
        }
    }
    for (int64_t i = first; i < width; i += step) {
        float out[V];
#pragma unroll
        for (int j = 0; j < V; j++) {
            out[j] = dw[i + j];
        }
        store(partial + blockIdx.x * width + i, out);
    }
}

/* dw[c] += the sum of partial[b][c] over b: lane l adds b = l, l + LANES, ..., then the lanes in
 * order. Bytes: partial once. Bound by memory. */
__global__ void __launch_bounds__(COLUMNS *LANES)
    add_partial_kernel(float *dw, const float *__restrict__ partial, int64_t blocks, int64_t width)
{
    SMEM(float, part, [LANES][COLUMNS]);
    const int64_t c = (int64_t)blockIdx.x * COLUMNS + threadIdx.x;
    float sum = 0;
    for (int64_t block = threadIdx.y; block < blocks && c < width; block += LANES) {
        sum += partial[block * width + c];
    }
    part[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && c < width) {
        sum = dw[c];
        for (int lane = 0; lane < LANES; lane++) {
            sum += part[lane][threadIdx.x];
        }
        dw[c] = sum;
    }
}

/* At least BLOCK_ROWS, so that partial sums are few bytes, and no more than BLOCKS blocks. */
static int64_t rows_per_block(int64_t rows)
{
    const int64_t least = BLOCK_ROWS;
    return max(least, (rows + BLOCKS - 1) / BLOCKS);
}

static int64_t block_count(int64_t rows)
{
    return (rows + rows_per_block(rows) - 1) / rows_per_block(rows);
}

size_t cuda_norm_backward_scratch(int64_t rows, int64_t width)
{
    return (size_t)(block_count(rows) * width) * sizeof(float);
}

void cuda_norm_backward(void *stream, struct tensor dx, struct tensor dw, struct tensor dy,
                        struct tensor x, const float *rstd, struct tensor w, void *scratch)
{
    const int64_t rows = x.dim[0], width = x.dim[1], blocks = block_count(rows);
    assert(width <= MAX_WIDTH && tensor_count(&w) == width && dw.dtype == DTYPE_F32);
    assert(dx.dtype == x.dtype && dy.dtype == x.dtype && w.dtype == x.dtype);
    if (rows == 0) {
        return;
    }
    const bool wide = width % pack_of(x.dtype) == 0 && aligned(dx.data) && aligned(dy.data) &&
                      aligned(x.data) && aligned(w.data) && aligned(scratch);
    dispatch(x.dtype, wide, [&](auto kind) {
        using T = typename decltype(kind)::type;
        constexpr int V = decltype(kind)::pack;
        const size_t bytes = (size_t)width * sizeof(float);
        (void)ALLOW_SMEM((norm_backward_kernel<T, V>), bytes); /* with `part` above 48 KiB sooner */
        LAUNCH((norm_backward_kernel<T, V>), (unsigned)blocks, row_threads(width / V), bytes,
               (cudaStream_t)stream, (T *)dx.data, (float *)scratch, (const T *)dy.data,
               (const T *)x.data, rstd, (const T *)w.data, rows, width, rows_per_block(rows));
    });
    LAUNCH(add_partial_kernel, (unsigned)((width + COLUMNS - 1) / COLUMNS), dim3(COLUMNS, LANES), 0,
           (cudaStream_t)stream, (float *)dw.data, (const float *)scratch, blocks, width);
}
