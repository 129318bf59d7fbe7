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
