#include "kernels/cuda/swiglu.cuh"

/* Bytes per element of h: gate and up in, h out. FLOPs: about 6 and an exp. Bound by memory. */
template <class T, int V>
__global__ void __launch_bounds__(TILE_THREADS)
    swiglu_forward_kernel(T *h, const T *__restrict__ gate_up, int64_t rows, int64_t width)
{
    const int64_t n = tile_row();
    if (n >= rows) {
        return;
    }
    const T *in = gate_up + n * 2 * width;
    for (int64_t i = threadIdx.x * V; i < width; i += blockDim.x * V) {
        float gate[V], up[V];
        load(gate, in + i);
        load(up, in + width + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            gate[j] = swiglu(gate[j], up[j]);
        }
        store(h + n * width + i, gate);
    }
}

/* A thread reads its elements before it writes them, so dgate_up may be gate_up. h: nullptr, or the
 * SwiGLU again. Bytes per element of h: dh, gate and up in, two or three out. FLOPs: about 12 and
 * an exp. Bound by memory. */
template <class T, int V>
__global__ void __launch_bounds__(TILE_THREADS)
    swiglu_backward_kernel(T *dgate_up, T *h, const T *__restrict__ dh, const T *gate_up,
                           int64_t rows, int64_t width)
{
    const int64_t n = tile_row();
    if (n >= rows) {
        return;
    }
    for (int64_t i = threadIdx.x * V; i < width; i += blockDim.x * V) {
        const int64_t at = n * 2 * width + i;
        float gate[V], up[V], grad[V], again[V];
        load(gate, gate_up + at);
        load(up, gate_up + at + width);
        load(grad, dh + n * width + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            again[j] = swiglu(gate[j], up[j]);
            swiglu_gradient(gate[j], up[j], grad[j]);
        }
        if (h != nullptr) {
            store(h + n * width + i, again);
        }
        store(dgate_up + at, gate);
        store(dgate_up + at + width, up);
    }
}

void cuda_swiglu_forward(void *stream, struct tensor h, struct tensor gate_up)
{
    const int64_t rows = h.dim[0], width = h.dim[1];
    assert(gate_up.dim[0] == rows && gate_up.dim[1] == 2 * width && gate_up.dtype == h.dtype);
    if (rows == 0 || width == 0) {
        return;
    }
    const bool wide = width % pack_of(h.dtype) == 0 && aligned(h.data) && aligned(gate_up.data);
    dispatch(h.dtype, wide, [&](auto kind) {
        using T = typename decltype(kind)::type;
        constexpr int V = decltype(kind)::pack;
        const struct tile tile = tile_of(rows, width / V);
        LAUNCH((swiglu_forward_kernel<T, V>), tile.grid, tile.block, 0, (cudaStream_t)stream,
               (T *)h.data, (const T *)gate_up.data, rows, width);
    });
}

void cuda_swiglu_backward(void *stream, struct tensor dgate_up, struct tensor h, struct tensor dh,
                          struct tensor gate_up)
{
    const int64_t rows = dh.dim[0], width = dh.dim[1];
    assert(gate_up.dim[0] == rows && gate_up.dim[1] == 2 * width && dgate_up.dim[1] == 2 * width);
    assert(gate_up.dtype == dh.dtype && dgate_up.dtype == dh.dtype);
    if (rows == 0 || width == 0) {
        return;
    }
    const bool wide = width % pack_of(dh.dtype) == 0 && aligned(dgate_up.data) &&
                      aligned(dh.data) && aligned(gate_up.data) && aligned(h.data);
    dispatch(dh.dtype, wide, [&](auto kind) {
        using T = typename decltype(kind)::type;
        constexpr int V = decltype(kind)::pack;
        const struct tile tile = tile_of(rows, width / V);
        LAUNCH((swiglu_backward_kernel<T, V>), tile.grid, tile.block, 0, (cudaStream_t)stream,
               (T *)dgate_up.data, (T *)h.data, (const T *)dh.data, (const T *)gate_up.data, rows,
               width);
    });
}
