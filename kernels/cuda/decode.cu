#include "kernels/cuda/decode.cuh"

size_t cuda_attention_decode_scratch(const struct decode_shape *shape)
{
    return sizeof(float) * (size_t)part_floats(shape, shape->v_dim);
}

void cuda_attention_decode(void *stream, void *o, const void *q, const void *k_cache,
                           const void *v_cache, const int32_t *lengths,
                           const struct decode_shape *shape, void *scratch)
{
    assert(shape->heads % shape->kv_heads == 0);
    if (shape->batch == 0) {
        return;
    }
    const int64_t qk = shape->qk_dim, v_dim = shape->v_dim, pack = pack_of(shape->dtype);
    const bool wide = qk % pack == 0 && v_dim % pack == 0 && aligned(k_cache) && aligned(v_cache);
    dispatch(shape->dtype, wide, [&](auto kind) {
        using T = typename decltype(kind)::type;
        constexpr int V = decltype(kind)::pack, HEADS = 8;
        struct decode_call<T> call =
            decode_call_of((const T *)q, lengths, v_dim, shape, (float *)scratch);
        call.k = call.rope = (const T *)k_cache;
        call.v = (const T *)v_cache;
        call.k_row = shape->kv_heads * qk;
        call.v_row = shape->kv_heads * v_dim;
        call.k_dim = call.k_head = qk;
        call.v_head = v_dim;
        call.per_group = shape->heads / shape->kv_heads;
        call.window = shape->window;
        attend<T, V, HEADS>(stream, (T *)o, shape->o_stride, call, shape->batch);
    });
}
