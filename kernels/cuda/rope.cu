/* Rotation in place, where attention reads: queries and keys side by side in the fused rows [q
 * heads | k heads | v heads] in one launch; of MLA the rope columns inside each query head, and the
 * one key all heads share. attention.cu takes the strides of such rows, so no head is ever copied
 * into a layout of its own, and the shared key not to the heads. */
#include "kernels/cuda/rows.cuh"

/* V elements of the first half and V of the second, or V neighbours, per step. Bytes per rotated
 * element: in and out once; the table's row comes from the cache for all heads but the first.
 * FLOPs: 3 per element. Bound by memory. */
template <class T, int V>
__global__ void __launch_bounds__(TILE_THREADS)
    rope_kernel(T *x, const int32_t *__restrict__ positions, const float *__restrict__ table,
                struct rope_shape shape, float sign, int64_t rows, int64_t width)
{
    const int64_t n = tile_row();
    if (n >= rows) {
        return;
    }
    const int middle = (int)shape.dim / 2, steps = middle / V, heads = (int)shape.heads;
    const float *angles = table + positions[n] * shape.dim;
    for (int at = threadIdx.x; at < heads * steps; at += blockDim.x) {
        const int head = at / steps, j = at % steps * V;
        T *own = x + n * width + shape.first + head * shape.head_stride;
        T *low = own + (shape.interleaved ? 2 * j : j);
        T *high = shape.interleaved ? low + V : own + middle + j;
        float a[V], b[V], cosine[V], sine[V];
        load(a, low);
        load(b, high);
        load(cosine, angles + j);
        load(sine, angles + middle + j);
        if (!shape.interleaved) {
#pragma unroll
            for (int i = 0; i < V; i++) {
                const float first = a[i], second = b[i], s = sign * sine[i];
                a[i] = first * cosine[i] - second * s;
                b[i] = second * cosine[i] + first * s;
            }
        } else if constexpr (V > 1) {
#pragma unroll
            for (int i = 0; i < V; i++) { /* a: pairs 0 .. V / 2 - 1, b: the others */
                float *pair = i < V / 2 ? a + 2 * i : b + 2 * i - V;
                const float first = pair[0], second = pair[1], s = sign * sine[i];
                pair[0] = first * cosine[i] - second * s;
                pair[1] = second * cosine[i] + first * s;
            }
        } else {
            const float first = a[0], second = b[0], s = sign * sine[0];
            a[0] = first * cosine[0] - second * s;
            b[0] = second * cosine[0] + first * s;
        }
        store(low, a);
        store(high, b);
    }
}

void cuda_rope(void *stream, struct tensor x, const int32_t *positions, const float *table,
               struct rope_shape shape, bool inverse)
{
    const int64_t rows = x.dim[0], width = x.dim[1], pack = pack_of(x.dtype);
    assert(shape.dim % 2 == 0 &&
           shape.first + (shape.heads - 1) * shape.head_stride + shape.dim <= width);
    if (rows == 0 || shape.heads == 0 || shape.dim == 0) {
        return;
    }
    const bool wide = width % pack == 0 && shape.first % pack == 0 &&
                      (shape.heads == 1 || shape.head_stride % pack == 0) &&
                      shape.dim / 2 % pack == 0 && aligned(x.data) && aligned(table);
    dispatch(x.dtype, wide, [&](auto kind) {
        using T = typename decltype(kind)::type;
        constexpr int V = decltype(kind)::pack;
        const struct tile tile = tile_of(rows, shape.heads * (shape.dim / 2 / V));
        LAUNCH((rope_kernel<T, V>), tile.grid, tile.block, 0, (cudaStream_t)stream, (T *)x.data,
               positions, table, shape, inverse ? -1.0F : 1.0F, rows, width);
    });
}
