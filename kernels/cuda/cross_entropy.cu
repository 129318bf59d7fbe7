#include <float.h>

#include "kernels/cuda/rows.cuh"

enum { ROW_THREADS = 512, ROW_WARPS = ROW_THREADS / 32 };

/* The largest logit of a part of a row and the sum of exp(logit - most). */
struct partial {
    float most;
    double sum;
};

DEVICE struct partial merge(struct partial a, struct partial b)
{
    const float most = fmaxf(a.most, b.most);
    return {most, a.sum * (double)expf(a.most - most) + b.sum * (double)expf(b.most - most)};
}

/* Of a row, in one pass: each thread its columns, then a fixed tree over lanes and over warps.
 * Every thread gets the result; all have read the row when it returns. */
template <int V> DEVICE struct partial row_partial(const float *row, int64_t vocab)
{
    SMEM(struct partial, part, [ROW_WARPS]);
    struct partial own = {-FLT_MAX, 0};
    for (int64_t i = threadIdx.x * V; i < vocab; i += ROW_THREADS * V) {
        float x[V], most = own.most, sum = 0;
        load(x, row + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            most = fmaxf(most, x[j]);
        }
        if (most > own.most) {
            own = {most, own.sum * (double)expf(own.most - most)};
        }
#pragma unroll
        for (int j = 0; j < V; j++) {
            sum += expf(x[j] - most);
        }
        own.sum += (double)sum;
    }
    for (int bits = 16; bits > 0; bits /= 2) {
        const struct partial other = {__shfl_xor_sync(0xffffffffu, own.most, bits),
                                      __shfl_xor_sync(0xffffffffu, own.sum, bits)};
        own = merge(own, other);
    }
    if (threadIdx.x % 32 == 0) {
        part[threadIdx.x / 32] = own;
    }
    __syncthreads();
    own = part[0];
    for (int warp = 1; warp < ROW_WARPS; warp++) {
        own = merge(own, part[warp]);
    }
    return own;
}

/* One block per row; the second pass finds what fits of the row in L2. grad may be the logits.
 * Bytes per logit: 4 in twice, 2 or 4 out. FLOPs: about 5 and two exps. Bound by memory. */
template <class T, int V>
__global__ void __launch_bounds__(ROW_THREADS)
    cross_entropy_kernel(double *loss, T *grad, const float *logits,
                         const int32_t *__restrict__ labels, float scale, int64_t vocab)
{
    const int64_t n = blockIdx.x;
    const int32_t label = labels[n];
    const float *row = logits + n * vocab;
    if (label >= vocab) {
        __trap();
    }
    float factor = 0, most = 0;
    if (label >= 0) {
        const float own = row[label];
        const struct partial all = row_partial<V>(row, vocab);
        most = all.most;
        factor = (float)((double)scale / all.sum);
        if (threadIdx.x == 0) {
            loss[n] = log(all.sum) + (double)most - (double)own;
        }
    } else if (threadIdx.x == 0) {
        loss[n] = 0;
    }
    if (grad == nullptr) {
        return;
    }
    for (int64_t i = threadIdx.x * V; i < vocab; i += ROW_THREADS * V) {
        float x[V];
        load(x, row + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            x[j] = label < 0 ? 0 : expf(x[j] - most) * factor - (i + j == label ? scale : 0);
        }
        store(grad + n * vocab + i, x);
    }
}

void cuda_cross_entropy_rows(void *stream, double *loss, struct tensor grad, struct tensor logits,
                             const int32_t *labels, float loss_scale)
{
    const int64_t rows = logits.dim[0], vocab = logits.dim[1];
    const bool narrow = grad.data != nullptr && grad.dtype == DTYPE_BF16;
    assert(logits.dtype == DTYPE_F32 && !(narrow && grad.data == logits.data));
    assert(narrow || grad.data == nullptr || grad.dtype == DTYPE_F32);
    if (rows == 0) {
        return;
    }
    const bool wide = vocab % (narrow ? 8 : 4) == 0 && aligned(logits.data) && aligned(grad.data);
    dispatch(narrow ? DTYPE_BF16 : DTYPE_F32, wide, [&](auto kind) {
        using T = typename decltype(kind)::type;
        constexpr int V = decltype(kind)::pack;
        LAUNCH((cross_entropy_kernel<T, V>), (unsigned)rows, ROW_THREADS, 0, (cudaStream_t)stream,
               loss, (T *)grad.data, (const float *)logits.data, labels, loss_scale, vocab);
    });
}

/* One block per row of a part of the columns. Bytes per logit: 4 in. FLOPs: about 3 and an exp.
 * Bound by memory. */
template <int V>
__global__ void __launch_bounds__(ROW_THREADS)
    loss_stats_kernel(double *stats, const float *logits, const int32_t *__restrict__ labels,
                      int64_t first, int64_t vocab)
{
    const int64_t n = blockIdx.x, label = labels[n];
    const float *row = logits + n * vocab;
    struct partial all = {0, 0};
    double own = 0;
    if (label >= 0) {
        all = row_partial<V>(row, vocab);
        own = label >= first && label < first + vocab ? (double)row[label - first] : 0;
    }
    if (threadIdx.x == 0) {
        stats[3 * n] = (double)all.most;
        stats[3 * n + 1] = all.sum;
        stats[3 * n + 2] = own;
    }
}

void cuda_loss_stats(void *stream, double *stats, struct tensor logits, const int32_t *labels,
                     int64_t first)
{
    const int64_t rows = logits.dim[0], vocab = logits.dim[1];
    assert(logits.dtype == DTYPE_F32 && vocab > 0);
    if (rows == 0) {
        return;
    }
    const bool wide = vocab % 4 == 0 && aligned(logits.data);
    dispatch(DTYPE_F32, wide, [&](auto kind) {
        constexpr int V = decltype(kind)::pack;
        LAUNCH((loss_stats_kernel<V>), (unsigned)rows, ROW_THREADS, 0, (cudaStream_t)stream, stats,
               (const float *)logits.data, labels, first, vocab);
    });
}

/* One block per row; every thread merges the ranks' three numbers, in their order. Bytes per logit:
 * 4 in, 2 or 4 out. FLOPs: about 4 and an exp. Bound by memory. */
template <class T, int V>
__global__ void __launch_bounds__(ROW_THREADS)
    loss_gradient_kernel(double *loss, T *grad, const float *logits, struct loss_parts parts,
                         const int32_t *__restrict__ labels, float scale, int64_t vocab)
{
    const int64_t n = blockIdx.x, rows = gridDim.x;
    const int64_t label = labels[n], own_label = label - parts.first;
    double most = -FLT_MAX, sum = 0, own = 0;
    for (int r = 0; r < parts.ranks; r++) {
        most = fmax(most, parts.stats[3 * (r * rows + n)]);
    }
    for (int r = 0; r < parts.ranks; r++) {
        const double *part = parts.stats + 3 * (r * rows + n);
        sum += part[1] * exp(part[0] - most);
        own += part[2];
    }
    if (threadIdx.x == 0) {
        loss[n] = label < 0 ? 0 : log(sum) + most - own;
    }
    if (grad == nullptr) {
        return;
    }
    const float factor = (float)((double)scale / sum);
    for (int64_t i = threadIdx.x * V; i < vocab; i += ROW_THREADS * V) {
        float x[V];
        load(x, logits + n * vocab + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            x[j] = label < 0 ? 0
                             : expf(x[j] - (float)most) * factor - (i + j == own_label ? scale : 0);
        }
        store(grad + n * vocab + i, x);
    }
}

void cuda_loss_gradient(void *stream, double *loss, struct tensor grad, struct tensor logits,
                        const struct loss_parts *parts, const int32_t *labels, float loss_scale)
{
    const int64_t rows = logits.dim[0], vocab = logits.dim[1];
    const bool narrow = grad.data != nullptr && grad.dtype == DTYPE_BF16;
    assert(logits.dtype == DTYPE_F32 && !(narrow && grad.data == logits.data));
    if (rows == 0) {
        return;
    }
    const bool wide = vocab % (narrow ? 8 : 4) == 0 && aligned(logits.data) && aligned(grad.data);
    dispatch(narrow ? DTYPE_BF16 : DTYPE_F32, wide, [&](auto kind) {
        using T = typename decltype(kind)::type;
        constexpr int V = decltype(kind)::pack;
        LAUNCH((loss_gradient_kernel<T, V>), (unsigned)rows, ROW_THREADS, 0, (cudaStream_t)stream,
               loss, (T *)grad.data, (const float *)logits.data, *parts, labels, loss_scale, vocab);
    });
}
