#include "kernels/cuda/attention.cuh"

enum { FORWARD_THREADS = 128 }; /* a warp per 16 queries */

template <class T> struct forward_call {
    struct head_rows<const T> q, k, v;
    struct head_rows<T> o;
    float *lse;   /* [B, H, T] */
    float *o_sum; /* of a part: in place of o, rows of all heads without gaps; else NULL */
    bool merges;  /* with what stands there */
    struct visibility mask;
    int64_t per_group; /* query heads of a key head */
    float scale;       /* of q.k, with log2(e) */
};

/* One step of online softmax on a warp's 16 rows; scores become weights, `out` shrinks. The keys of
 * units i are k0 + 16 i on; `low`, `last`: the first and last keys that the thread's two queries
 * see. */
template <int N, int V>
DEVICE void softmax_step(float (&score)[N][2][4], float (&out)[V][2][4], float (&most)[2],
                         float (&sum)[2], float scale, int k0, const int (&low)[2],
                         const int (&last)[2])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int below = low[r] - k0, above = last[r] - k0;
        const bool whole = below <= 0 && above >= N * 16 - 1;
        float high = most[r], part = 0;
#pragma unroll
        for (int i = 0; i < N * 4; i++) {
            float &s = score[i / 4][i / 2 % 2][2 * r + i % 2];
            const int key = i / 2 * 8 + lane_column() + i % 2;
            s = whole || (key >= below && key <= above) ? s * scale : MASKED;
            high = fmaxf(high, s);
        }
        high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
        high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
#pragma unroll
        for (int i = 0; i < N * 4; i++) {
            float &s = score[i / 4][i / 2 % 2][2 * r + i % 2];
            s = exp2f(s - high);
            part += s;
        }
        const float shrink = exp2f(most[r] - high);
        sum[r] = sum[r] * shrink + part; /* of the thread's columns */
        most[r] = high;
#pragma unroll
        for (int i = 0; i < V * 4; i++) {
            out[i / 4][i / 2 % 2][2 * r + i % 2] *= shrink;
        }
    }
}

/* The thread's elements of row `row` of the block's head, its r-th of two, times `factor`. */
template <int V, class T>
DEVICE void store_row(const struct forward_call<T> &call, const float (&out)[V][2][4], int r,
                      int64_t row, float lse, float factor)
{
    const int64_t head = blockIdx.y, sample = blockIdx.z, sequence = call.mask.sequence;
    const struct head_rows<T> outputs = head_at(call.o, sample * sequence, head);
    if (row >= sequence) {
        return;
    }
#pragma unroll
    for (int i = 0; i < V * 2; i++) {
        store_pair(outputs.own + row * outputs.stride, i * 8 + lane_column(), outputs.own_dim,
                   out[i / 2][i % 2][2 * r] * factor, out[i / 2][i % 2][2 * r + 1] * factor,
                   outputs.paired);
    }
    if (threadIdx.x % 4 == 0) {
        call.lse[(sample * gridDim.y + head) * sequence + row] = lse;
    }
}

/* The same of a part, with what stands there of other keys; all of a warp's threads call it. */
template <int V, class T>
DEVICE void merge_row(const struct forward_call<T> &call, const float (&out)[V][2][4], int r,
                      int64_t row, float lse, float factor)
{
    const int64_t head = blockIdx.y, heads = gridDim.y, sample = blockIdx.z,
                  sequence = call.mask.sequence, at = (sample * heads + head) * sequence + row;
    const bool real = row < sequence, first = threadIdx.x % 4 == 0;
    const float old = call.merges && real && first ? call.lse[at] : MASKED,
                before = __shfl_sync(0xffffffffu, old, (int)threadIdx.x % 32 / 4 * 4),
                high = fmaxf(before, lse), kept = exp2f((before - high) * LOG2_E),
                taken = exp2f((lse - high) * LOG2_E), keep = kept / (kept + taken),
                take = call.merges ? taken / (kept + taken) * factor : factor;
    const int dim = call.o.own_dim;
    float *to = call.o_sum + ((sample * sequence + row) * heads + head) * dim;
    if (!real) {
        return;
    }
#pragma unroll
    for (int i = 0; i < V * 4; i++) {
        const int column = i / 2 * 8 + lane_column() + i % 2;
        if (column < dim) {
            const float own = out[i / 4][i / 2 % 2][2 * r + i % 2] * take;
            to[column] = call.merges ? keep * to[column] + own : own;
        }
    }
    if (first) {
        call.lse[at] = call.merges ? high + logf(kept + taken) : lse;
    }
}

/* Blocks that share a multiprocessor, as far as registers go without spilling. */
template <class T> constexpr int forward_blocks(int v_dim)
{
    return sizeof(T) == 4 || v_dim > 128 ? 1 : v_dim > 64 ? 3 : 4;
}

/* 64 queries of one head: their keys and values go by in tiles, values arriving while scores are
 * made, the next keys while values are added. Weights are rounded to T before they multiply values;
 * their sum is not. Of a part o and lse are merged with what stands there, in f32. V: v_dim at
 * most. Bytes: q, o once; k, v once per 64 queries of each head, mostly from L2. FLOPs: T^2 (qk_dim
 * + v_dim) per head of a causal sample; bound by the tensor cores (bf16), by FMA (f32). */
template <class T, int V>
__global__ void __launch_bounds__(FORWARD_THREADS, forward_blocks<T>(V))
    attention_forward_kernel(struct forward_call<T> call)
{
    constexpr int QUERIES = tiles<T>::queries, KEYS = tiles<T>::keys, UNITS = KEYS / 16;
    static_assert(QUERIES == FORWARD_THREADS / 2, "a warp has 16 queries");
    SMEM_DYN(dynamic);
    T *q = (T *)dynamic, *k = q + QUERIES * call.q.pitch, *v = k + KEYS * call.k.pitch;
    T *room = v + KEYS * call.v.pitch; /* f32 only */
    const int64_t sequence = call.mask.sequence, count = call.mask.keys, head = blockIdx.y,
                  sample = blockIdx.z, group = head / call.per_group, start = sample * sequence,
                  q0 = (int64_t)(gridDim.x - 1 - blockIdx.x) * QUERIES; /* long ones first */
    const struct head_rows<const T> queries = head_at(call.q, start, head),
                                    keys = head_at(call.k, sample * count, group),
                                    values = head_at(call.v, sample * count, group);
    const struct visibility mask = visibility_at(call.mask, sample);
    const int warp = threadIdx.x / 32;
    const int own = (int)q0 + warp * 16 + lane_row(); /* the thread's first; the other is own + 8 */
    const int low[2] = {first_visible(mask, own), first_visible(mask, own + 8)};
    const int last[2] = {last_visible(mask, own), last_visible(mask, own + 8)};
    const int lowest = first_visible(mask, q0), end = (int)end_visible(mask, q0, QUERIES);
    float out[V / 16][2][4] = {}, most[2] = {MASKED, MASKED}, sum[2] = {};

    load_tile(q, queries, q0, QUERIES, sequence);
    load_tile(k, keys, lowest / KEYS * KEYS, KEYS, count);
    cp_async_commit();
    for (int k0 = lowest / KEYS * KEYS; k0 < end; k0 += KEYS) {
        float score[UNITS][2][4];
        cp_async_wait<0>();
        __syncthreads(); /* keys are there, the last values used */
        load_tile(v, values, k0, KEYS, count);
        cp_async_commit();
        product_rows(score, q + warp * 16 * call.q.pitch, k, call.k.pitch, call.k.padded);
        cp_async_wait<0>();
        __syncthreads();
        if (k0 + KEYS < end) {
            load_tile(k, keys, k0 + KEYS, KEYS, count);
            cp_async_commit();
        }
        softmax_step(score, out, most, sum, call.scale, k0, low, last);
#pragma unroll
        for (int i = 0; i < UNITS; i++) {
            struct fragment<T> weights;
            make_fragment(weights, score[i], room + warp * 16 * (16 + tiles<T>::pack),
                          16 + tiles<T>::pack);
            add_columns(out, weights, v + i * 16 * call.v.pitch, call.v.pitch, 0, 16,
                        call.v.padded);
        }
    }
    cp_async_wait<0>(); /* where the keys begin behind what is seen */
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
        const float lse = sum[r] == 0 ? MASKED : most[r] * LN_2 + logf(sum[r]),
                    factor = sum[r] == 0 ? 0 : 1.0F / sum[r];
        if (call.o_sum == nullptr) {
            store_row(call, out, r, own + 8 * r, lse, factor);
        } else {
            merge_row(call, out, r, own + 8 * r, lse, factor);
        }
    }
}

template <class T, int V>
static void launch_forward(void *stream, const struct forward_call<T> &call,
                           const struct attention_shape *shape)
{
    constexpr int QUERIES = tiles<T>::queries, KEYS = tiles<T>::keys;
    const int room = sizeof(T) == 4 ? QUERIES * (16 + tiles<T>::pack) : 0;
    const size_t bytes =
        sizeof(T) * (size_t)((QUERIES + KEYS) * call.k.pitch + KEYS * call.v.pitch + room);
    const dim3 grid((unsigned)((shape->sequence + QUERIES - 1) / QUERIES), (unsigned)shape->heads,
                    (unsigned)shape->batch);
    ALLOW_SMEM((attention_forward_kernel<T, V>), bytes);
    LAUNCH((attention_forward_kernel<T, V>), grid, FORWARD_THREADS, bytes, (cudaStream_t)stream,
           call);
}

template <class T>
static void forward(void *stream, void *o, float *lse, const T *q, const T *k, const T *k_rope,
                    const T *v, const struct attention_shape *shape)
{
    const int qk = (int)shape->qk_dim, v_dim = (int)shape->v_dim, rope = (int)shape->rope_dim;
    const bool part = shape->keys > 0;
    const struct forward_call<T> call = {
        .q = head_rows_of<const T>(q, shape->q_stride, qk, qk, nullptr, 0, 0),
        .k = head_rows_of<const T>(k, shape->k_stride, shape->k_head_stride, qk - rope, k_rope,
                                   shape->k_rope_stride, rope),
        .v = head_rows_of<const T>(v, shape->v_stride, shape->v_head_stride, v_dim, nullptr, 0, 0),
        .o = head_rows_of<T>((T *)o, shape->o_stride, v_dim, v_dim, nullptr, 0, 0), .lse = lse,
        .o_sum = part ? (float *)o : nullptr, .merges = shape->merges, .mask = visibility_of(shape),
        .per_group = shape->heads / shape->kv_heads, .scale = shape->scale * LOG2_E
    };
    if (v_dim <= 64) {
        launch_forward<T, 64>(stream, call, shape);
    } else if (v_dim <= 128) {
        launch_forward<T, 128>(stream, call, shape);
    } else {
        launch_forward<T, 256>(stream, call, shape);
    }
}

void cuda_attention_forward(void *stream, void *o, float *lse, const void *q, const void *k,
                            const void *k_rope, const void *v, const struct attention_shape *shape)
{
    assert(shape->heads % shape->kv_heads == 0 && shape->rope_dim <= shape->qk_dim);
    if (shape->batch == 0 || shape->sequence == 0) {
        return;
    }
    if (shape->dtype == DTYPE_F32) {
        forward(stream, o, lse, (const float *)q, (const float *)k, (const float *)k_rope,
                (const float *)v, shape);
    } else {
        forward(stream, o, lse, (const bf16 *)q, (const bf16 *)k, (const bf16 *)k_rope,
                (const bf16 *)v, shape);
    }
}
