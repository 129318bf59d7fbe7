/* fp8_swiglu: SwiGLU's numbers as sources of fp8_tile.cuh, from gate_up in bf16 or in codes. */
#ifndef KERNELS_CUDA_FP8_SWIGLU_CUH
#define KERNELS_CUDA_FP8_SWIGLU_CUH

#include "kernels/cuda/fp8_tile.cuh"
#include "kernels/cuda/swiglu.cuh"

/* Columns [column, column + 16) of gate and of up, which are `width` columns apart. */
template <class G>
DEVICE void fp8_gate_up(const G &gate_up, typename G::held &gate, typename G::held &up, int64_t r,
                        int64_t column, int64_t width)
{
    fp8_fetch(gate_up, gate, r, column);
    fp8_fetch(gate_up, up, r, width + column);
}

/* silu(gate) up, rounded to bf16. */
template <class G> DEVICE void fp8_swiglu(struct fp8_bf16s &h, const G &gate, const G &up)
{
#pragma unroll
    for (int c = 0; c < FP8_PART; c += 2) {
        fp8_set(h, c, swiglu(fp8_value(gate, c), fp8_value(up, c)),
                swiglu(fp8_value(gate, c + 1), fp8_value(up, c + 1)));
    }
}

/* The gradients of gate and up, rounded to bf16. */
template <class G>
DEVICE void fp8_swiglu_gradient(struct fp8_bf16s &dgate, struct fp8_bf16s &dup,
                                const struct fp8_bf16s &dh, const G &gate, const G &up)
{
#pragma unroll
    for (int c = 0; c < FP8_PART; c += 2) {
        float a[2] = {fp8_value(gate, c), fp8_value(gate, c + 1)};
        float u[2] = {fp8_value(up, c), fp8_value(up, c + 1)};
        swiglu_gradient(a[0], u[0], fp8_value(dh, c));
        swiglu_gradient(a[1], u[1], fp8_value(dh, c + 1));
        fp8_set(dgate, c, a[0], a[1]);
        fp8_set(dup, c, u[0], u[1]);
    }
}

/* h[R,F]. G: fp8_from_bf16 or fp8_from_codes, of gate_up[R,2F]. */
template <class G> struct fp8_from_swiglu {
    using held = struct fp8_bf16s;
    G gate_up;
    int64_t width; /* F */
};

template <class G>
DEVICE void fp8_fetch(const struct fp8_from_swiglu<G> &from, struct fp8_bf16s &x, int64_t r,
                      int64_t column)
{
    typename G::held gate = {}, up = {};
    fp8_gate_up(from.gate_up, gate, up, r, column, from.width);
    fp8_swiglu(x, gate, up);
}

/* The gradient [R,2F]; sixteen columns are all gate's or all up's. */
template <class G> struct fp8_from_gradient {
    using held = struct fp8_bf16s;
    G gate_up;
    struct fp8_from_bf16 dh;
    int64_t width;
};

template <class G>
DEVICE void fp8_fetch(const struct fp8_from_gradient<G> &from, struct fp8_bf16s &x, int64_t r,
                      int64_t column)
{
    const bool is_up = column >= from.width;
    const int64_t at = is_up ? column - from.width : column;
    typename G::held gate = {}, up = {};
    struct fp8_bf16s dh = {}, dgate, dup;
    fp8_gate_up(from.gate_up, gate, up, r, at, from.width);
    fp8_fetch(from.dh, dh, r, at);
    fp8_swiglu_gradient(dgate, dup, dh, gate, up);
#pragma unroll
    for (int i = 0; i < FP8_PART / 2; i++) {
        x.pair[i] = is_up ? dup.pair[i] : dgate.pair[i];
    }
}

static inline struct fp8_from_codes fp8_from_rows(struct fp8_rows q)
{
    (void)fp8_sink_of(q); /* its checks */
    return {q.code, q.scale, q.cols, q.pitch};
}

#endif
