#include "kernels/cuda/copy_rows.cuh"
#include "kernels/cuda/rows.cuh"

void cuda_embedding_forward(void *stream, struct tensor y, const int32_t *ids, struct tensor w)
{
    const int64_t bytes = w.dim[1] * (int64_t)dtype_bytes(w.dtype);
    assert(y.dtype == w.dtype && y.dim[1] == w.dim[1]);
    copy_rows(stream, {y.data, w.data, y.dim[0], bytes, bytes, bytes, nullptr, ids, y.dim[0],
                       w.dim[0], false});
}

/* Lowest n in [from, to) with ids[n] == id, or -1; one warp. */
DEVICE int64_t find(const int32_t *ids, int32_t id, int64_t from, int64_t to)
{
    const int lane = threadIdx.x % 32;
    for (int64_t base = from; base < to; base += 32) {
        const int64_t at = base + lane;
        const unsigned hit = __ballot_sync(0xffffffffu, at < to && ids[at] == id);
        if (hit != 0) {
            return base + __ffs((int)hit) - 1;
        }
    }
    return -1;
}

enum { LINK_WARPS = 8 };

/* Chains the tokens with equal ids: after[n] is the next one, or -1; first[n]: none before it. One
 * warp per token. Bytes: up to 4 N^2 read from the L2 cache (N = 16384: 1 GB), less where ids repeat;
 * bound by L2. */
__global__ void __launch_bounds__(LINK_WARPS * 32)
    link_ids_kernel(int32_t *after, int32_t *first, const int32_t *__restrict__ ids, int64_t tokens)
{
    const int64_t n = (int64_t)blockIdx.x * LINK_WARPS + threadIdx.x / 32;
    if (n >= tokens) {
        return;
    }
    if (ids[n] < 0) { /* nobody's */
        if (threadIdx.x % 32 == 0) {
            first[n] = 0;
        }
        return;
    }
    const int64_t earlier = find(ids, ids[n], 0, n), later = find(ids, ids[n], n + 1, tokens);
    if (threadIdx.x % 32 == 0) {
        first[n] = earlier < 0;
        after[n] = (int32_t)later;
    }
}

/* The first token with an id owns its row of dw and adds all of them in token order, V columns per
 * thread. Bytes: dy once, the touched rows of dw in and out. FLOPs: 1 per element of dy. Bound by
 * memory, or by the longest chain (about a microsecond per token in it). */
template <class T, int V>
__global__ void __launch_bounds__(TILE_THREADS)
    embedding_backward_kernel(float *dw, const T *__restrict__ dy, const int32_t *__restrict__ ids,
                              const int32_t *__restrict__ after, const int32_t *__restrict__ first,
                              int64_t vocab, int64_t width)
{
    const int64_t n = blockIdx.x;
    const int64_t i = ((int64_t)blockIdx.y * TILE_THREADS + threadIdx.x) * V;
    if (!first[n] || i >= width) {
        return;
    }
    if (ids[n] >= vocab) {
        __trap();
    }
    float *out = dw + ids[n] * width + i;
    float sum[V];
    load(sum, out);
    for (int64_t token = n; token >= 0; token = after[token]) {
        float in[V];
        load(in, dy + token * width + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            sum[j] += in[j];
        }
    }
    store(out, sum);
}

size_t cuda_embedding_backward_scratch(int64_t tokens)
{
    return (size_t)tokens * 2 * sizeof(int32_t);
}

void cuda_embedding_backward(void *stream, struct tensor dw, const int32_t *ids, struct tensor dy,
                             void *scratch)
{
    const int64_t tokens = dy.dim[0], width = dw.dim[1];
    int32_t *after = (int32_t *)scratch, *first = after + tokens;
    assert(dw.dtype == DTYPE_F32 && dy.dim[1] == width);
    if (tokens == 0 || width == 0) {
        return;
    }
    LAUNCH(link_ids_kernel, (unsigned)((tokens + LINK_WARPS - 1) / LINK_WARPS), LINK_WARPS * 32, 0,
           (cudaStream_t)stream, after, first, ids, tokens);
    const bool wide = width % pack_of(dy.dtype) == 0 && aligned(dw.data) && aligned(dy.data);
    dispatch(dy.dtype, wide, [&](auto kind) {
        using T = typename decltype(kind)::type;
        constexpr int V = decltype(kind)::pack;
        const int64_t columns = TILE_THREADS * V;
        const dim3 grid((unsigned)tokens, (unsigned)((width + columns - 1) / columns));
        LAUNCH((embedding_backward_kernel<T, V>), grid, TILE_THREADS, 0, (cudaStream_t)stream,
               (float *)dw.data, (const T *)dy.data, ids, after, first, dw.dim[0], width);
    });
}
