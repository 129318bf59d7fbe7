/* Whole keys for MLA: heads' own parts and the rope part they share, side by side and apart. */
#include "kernels/cuda/rows.cuh"

enum { LAYOUT_THREADS = 256, LAYOUT_UNIT = 8 /* bf16 of 16 bytes */ };

/* Sizes in units of 16 bytes. */
struct key_layout {
    int64_t k_stride, k_head_stride, k_rope_stride;
    int heads, own, rope; /* a key is [own | rope] */
};

static struct key_layout layout_of(const struct attention_shape *s)
{
    const int64_t own = s->qk_dim - s->rope_dim;
    assert(s->dtype == DTYPE_BF16 && s->rope_dim > 0 && own >= 0);
    assert((own | s->rope_dim | s->k_stride | s->k_head_stride | s->k_rope_stride) % LAYOUT_UNIT ==
           0);
    return {s->k_stride / LAYOUT_UNIT,      s->k_head_stride / LAYOUT_UNIT,
            s->k_rope_stride / LAYOUT_UNIT, (int)s->kv_heads,
            (int)(own / LAYOUT_UNIT),       (int)(s->rope_dim / LAYOUT_UNIT)};
}

/* One block per token. Bytes: the own parts in, the rope part in (once: the heads' reads hit the
 * cache), the keys out. Bound by memory. */
__global__ void __launch_bounds__(LAYOUT_THREADS)
    join_keys_kernel(uint4 *keys, const uint4 *__restrict__ k, const uint4 *__restrict__ k_rope,
                     struct key_layout layout)
{
    const int64_t token = blockIdx.x;
    const int whole = layout.own + layout.rope, count = layout.heads * whole;
    for (int i = threadIdx.x; i < count; i += LAYOUT_THREADS) {
        const int head = i / whole, unit = i % whole;
        keys[token * count + i] =
            unit < layout.own ? k[token * layout.k_stride + head * layout.k_head_stride + unit]
                              : k_rope[token * layout.k_rope_stride + unit - layout.own];
    }
}

/* One block per token. Bytes: the own parts in and out. Bound by memory. */
__global__ void __launch_bounds__(LAYOUT_THREADS)
    own_keys_kernel(uint4 *dk, const uint4 *__restrict__ dkeys, struct key_layout layout)
{
    const int64_t token = blockIdx.x;
    const int whole = layout.own + layout.rope, count = layout.heads * layout.own;
    for (int i = threadIdx.x; i < count; i += LAYOUT_THREADS) {
        const int head = i / layout.own, unit = i % layout.own;
        dk[token * layout.k_stride + head * layout.k_head_stride + unit] =
            dkeys[token * layout.heads * whole + head * whole + unit];
    }
}

/* One thread per 16 bytes of dk_rope, over all heads in order. Bytes: the heads' rope parts in, one
 * out. FLOPs: one per element in. Bound by memory. */
__global__ void __launch_bounds__(LAYOUT_THREADS)
    rope_keys_kernel(bf16 *dk_rope, const bf16 *__restrict__ dkeys, int64_t tokens,
                     struct key_layout layout)
{
    const int64_t i = (int64_t)blockIdx.x * LAYOUT_THREADS + threadIdx.x;
    const int64_t token = i / layout.rope, unit = i % layout.rope;
    const int whole = layout.own + layout.rope;
    if (token >= tokens) {
        return;
    }
    const bf16 *from = dkeys + (token * layout.heads * whole + layout.own + unit) * LAYOUT_UNIT;
    float sum[LAYOUT_UNIT] = {};
#pragma unroll 8
    for (int head = 0; head < layout.heads; head++) {
        float part[LAYOUT_UNIT];
        load(part, from + (int64_t)head * whole * LAYOUT_UNIT);
#pragma unroll
        for (int j = 0; j < LAYOUT_UNIT; j++) {
            sum[j] += part[j];
        }
    }
    store(dk_rope + (token * layout.k_rope_stride + unit) * LAYOUT_UNIT, sum);
}

void cuda_attention_join_keys(void *stream, void *keys, const void *k, const void *k_rope,
                              const struct attention_shape *shape)
{
    const struct key_layout layout = layout_of(shape);
    const int64_t tokens = shape->batch * shape->sequence;
    assert(aligned(keys) && aligned(k) && aligned(k_rope));
    if (tokens == 0) {
        return;
    }
    LAUNCH(join_keys_kernel, (unsigned)tokens, LAYOUT_THREADS, 0, (cudaStream_t)stream,
           (uint4 *)keys, (const uint4 *)k, (const uint4 *)k_rope, layout);
}

void cuda_attention_split_keys(void *stream, void *dk, void *dk_rope, const void *dkeys,
                               const struct attention_shape *shape)
{
    const struct key_layout layout = layout_of(shape);
    const int64_t tokens = shape->batch * shape->sequence;
    assert(aligned(dk) && aligned(dk_rope) && aligned(dkeys));
    if (tokens == 0) {
        return;
    }
    if (layout.own > 0) {
        LAUNCH(own_keys_kernel, (unsigned)tokens, LAYOUT_THREADS, 0, (cudaStream_t)stream,
               (uint4 *)dk, (const uint4 *)dkeys, layout);
    }
    const int64_t threads = tokens * layout.rope;
    LAUNCH(rope_keys_kernel, (unsigned)((threads + LAYOUT_THREADS - 1) / LAYOUT_THREADS),
           LAYOUT_THREADS, 0, (cudaStream_t)stream, (bf16 *)dk_rope, (const bf16 *)dkeys, tokens,
           layout);
}
