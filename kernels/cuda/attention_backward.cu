/* Backward without atomics (Dao et al. 2022, algorithm 4, cut in two): one kernel makes dk and dv
 * of a tile of keys, going over the queries that see it head by head of its group; another dq of a
 * tile of queries, going over its keys. Both make the weights P = exp(scale q k^T - lse) anew, so
 * scores are computed twice, and every sum has a fixed order. delta = rowsum(dO O) comes first.
 * What all heads share, dk_rope, leaves the first kernel as f32 parts of groups, added in their
 * order. Of a part of an attention all gradients add to what is there, in f32. */
#include "kernels/cuda/attention.cuh"

enum {
    DELTA_THREADS = 128,
    ROPE_THREADS = 256,
    HALVES = 2,                 /* two warps share 16 rows */
    BACKWARD_SHARED = 160 << 10 /* sm_80 has 163 KiB, of which 1.5 are query_facts */
};

template <class T> struct backward_call {
    struct head_rows<const T> q, k, v, o, d_o;
    struct head_rows<T> dq, dk, dv;
    const float *lse;
    float *delta;                    /* [B, H, T] */
    float *dk_rope;                  /* [B, G, keys, rope_dim] */
    float *dq_sum, *dk_sum, *dv_sum; /* of a part: in place of dq, dk, dv, with their strides; else
                                        NULL */
    struct visibility mask;
    int64_t heads, per_group; /* query heads, of them for a key head */
    float scale;              /* of q.k */
    int stages;               /* 2: the next tile arrives while this one is used, where it fits */
};

/* What a tile of queries is known by. P = exp2(scale q.k - lse). */
template <int TILE> struct query_facts {
    float lse[TILE], delta[TILE]; /* lse times log2(e); of no query: weights become 0 */
    int low[TILE];                /* first visible key */
};

/* A warp per query and head: delta = <dO, O> in f32. Bytes: o and d_o once. Bound by memory. */
template <class T>
__global__ void __launch_bounds__(DELTA_THREADS)
    attention_delta_kernel(struct backward_call<T> call, int64_t rows)
{
    const int64_t at = ((int64_t)blockIdx.x * DELTA_THREADS + threadIdx.x) / 32,
                  head = at % call.heads, n = at / call.heads, sequence = call.mask.sequence;
    if (n >= rows) {
        return;
    }
    const T *o = head_at(call.o, n, head).own, *d_o = head_at(call.d_o, n, head).own;
    float sum = 0;
    for (int c = threadIdx.x % 32; c < call.o.own_dim; c += 32) {
        sum += to_float(o[c]) * to_float(d_o[c]);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) {
        call.delta[(n / sequence * call.heads + head) * sequence + n % sequence] = sum;
    }
}

template <class T, int TILE>
DEVICE void load_facts(struct query_facts<TILE> &facts, const struct backward_call<T> &call,
                       const struct visibility &mask, int64_t head, int64_t sample, int64_t q0)
{
    for (int i = threadIdx.x; i < TILE; i += blockDim.x) {
        const int64_t t = q0 + i, at = (sample * call.heads + head) * mask.sequence + t;
        const bool real = t < mask.sequence;
        facts.lse[i] = real ? call.lse[at] * LOG2_E : -MASKED;
        facts.delta[i] = real ? call.delta[at] : 0;
        facts.low[i] = first_visible(mask, t);
    }
}

/* Of a query and a key of tiles that begin at token q0 and key k0: the score becomes the weight P,
 * `dp` = dO.v becomes P (dP - delta). */
template <int TILE>
DEVICE void gradient(float &score, float &dp, float scale, const struct query_facts<TILE> &facts,
                     int query, int key, int q0, int k0)
{
    /* At most 1: of huge scores the rounding alone is more than exp2 can take. */
    const bool visible = key <= query + q0 - k0 && key >= facts.low[query] - k0;
    score = visible ? exp2f(fminf(score * scale - facts.lse[query], 0)) : 0;
    dp = score * (dp - facts.delta[query]);
}

/* Where the tiles of queries begin that see a tile of keys: with the one at the same place, or the
 * one that it lies in. */
DEVICE int first_query(const visibility &mask, int k0, int tile)
{
    return max(k0 - (int)mask.ahead, 0) / tile * tile;
}

/* How many these are, from the one at q0 on; one at least. */
DEVICE int tiles_of_queries(const visibility &mask, int q0, int k0, int tile)
{
    int end = q0 + tile;
    while (end < mask.sequence && first_visible(mask, end) < k0 + tile) {
        end += tile;
    }
    return (end - q0) / tile;
}

/* A warp's part [16, 16 N] of a tile goes to shared memory, from row, column on. */
template <int N, class T>
DEVICE void store_part(T *tile, int pitch, int row, int column, const float (&c)[N][2][4])
{
#pragma unroll
    for (int i = 0; i < N * 4; i++) { /* a tile of 16 x 8, one of the thread's two rows */
        store_pair(tile + (row + lane_row() + i % 2 * 8) * pitch,
                   column + i / 2 * 8 + lane_column(), pitch, c[i / 4][i / 2 % 2][i % 2 * 2],
                   c[i / 4][i / 2 % 2][i % 2 * 2 + 1], true);
    }
}

/* c += a[16, TILE] b, the units of b that are `side`'s: every second one. */
template <int TILE, int N, class T>
DEVICE void add_tile(float (&c)[N][2][4], const T *a, const T *b, int pitch, int side, int columns)
{
#pragma unroll
    for (int k = 0; k < TILE; k += 16) {
        struct fragment<T> left;
        load_fragment(left, a + k, TILE + tiles<T>::pack);
        add_columns(c, left, b + k * pitch, pitch, side * 16, HALVES * 16, columns);
    }
}

/* Columns column, column + 1 of a row of `columns`, those that exist. */
DEVICE void add_pair(float *row, int column, int columns, float a, float b)
{
    if (column < columns) {
        row[column] += a;
    }
    if (column + 1 < columns) {
        row[column + 1] += b;
    }
}

/* As head_at of rows that `out` has the strides of; NULL stays. */
template <class T>
DEVICE float *sum_at(float *sum, const struct head_rows<T> &out, int64_t row, int64_t head)
{
    return sum != nullptr ? sum + row * out.stride + head * out.head_stride : nullptr;
}

/* Rows first .. of a gradient, times `factor`: columns below own_dim to `out`, or added to `sum`
 * where there is one, the others to the rows of `rope`, f32. */
template <int N, class T>
DEVICE void store_gradient(const struct head_rows<T> &out, float *sum, float *rope, int64_t first,
                           int64_t rows, int side, const float (&c)[N][2][4], float factor)
{
#pragma unroll
    for (int i = 0; i < N * 4; i++) {
        const int64_t row = first + lane_row() + i % 2 * 8;
        const int column = (i / 4 * HALVES + side) * 16 + i / 2 % 2 * 8 + lane_column();
        const float a = c[i / 4][i / 2 % 2][i % 2 * 2] * factor,
                    b = c[i / 4][i / 2 % 2][i % 2 * 2 + 1] * factor;
        if (row >= rows) {
            continue;
        }
        if (sum == nullptr) {
            store_pair(out.own + row * out.stride, column, out.own_dim, a, b, out.paired);
        } else {
            add_pair(sum + row * out.stride, column, out.own_dim, a, b);
        }
        const int shared = column - out.own_dim;
        if (shared >= 0 && shared < out.rope_dim) {
            rope[row * out.rope_dim + shared] = a;
        }
        if (shared + 1 >= 0 && shared + 1 < out.rope_dim) {
            rope[row * out.rope_dim + shared + 1] = b;
        }
    }
}

/* Blocks that share a multiprocessor, as far as registers go without spilling. */
template <class T> constexpr int backward_blocks(int qk_dim)
{
    return sizeof(T) == 4 || qk_dim > 64 ? 1 : 2;
}

/* dk, dv of a tile of keys of one group: S^T = K Q^T, dP^T = V dO^T, dV += P^T dO, dK += dS^T Q.
 * A warp has 16 keys, and half the queries in the first two products, half the columns in the
 * others; P and dS pass through shared memory, rounded to T. QK, V: qk_dim and v_dim at most.
 * Bytes: k, v, dk, dv once; q, d_o once per tile and head, mostly from L2. FLOPs: T^2 (2 qk_dim +
 * 2 v_dim) per head of a causal sample. Bound by the tensor cores (bf16), by FMA (f32). */
template <class T, int QK, int V>
__global__ void __launch_bounds__(tiles<T>::both * 4, backward_blocks<T>(QK))
    attention_backward_keys_kernel(struct backward_call<T> call)
{
    constexpr int TILE = tiles<T>::both, UNITS = TILE / (16 * HALVES), ROOM = TILE + tiles<T>::pack;
    SMEM(struct query_facts<TILE>, facts, [2]);
    SMEM_DYN(dynamic);
    const int qk_pitch = call.k.pitch, v_pitch = call.v.pitch, stages = call.stages,
              stage_size = TILE * (qk_pitch + v_pitch);
    T *k = (T *)dynamic, *v = k + TILE * qk_pitch, *p = v + TILE * v_pitch, *ds = p + TILE * ROOM,
      *stage = ds + TILE * ROOM; /* q, d_o */
    const int64_t sequence = call.mask.sequence, count = call.mask.keys, group = blockIdx.y,
                  sample = blockIdx.z, start = sample * sequence, k_start = sample * count;
    const int k0 = (int)blockIdx.x * TILE;
    const visibility mask = visibility_at(call.mask, sample);
    const int begin = first_query(mask, k0, TILE);
    const int warp = threadIdx.x / 32, side = warp % HALVES, own = warp / HALVES * 16;
    const int first = side * UNITS * 16; /* of the warp's queries */
    const int query_tiles = tiles_of_queries(mask, begin, k0, TILE),
              steps = query_tiles * (int)call.per_group;
    float dk[QK / 32][2][4] = {}, dv[V / 32][2][4] = {};

    const auto fetch = [&](int step) {
        const int64_t head = group * call.per_group + step / query_tiles;
        const int q0 = begin + step % query_tiles * TILE;
        T *to = stage + step % stages * stage_size;
        load_tile(to, head_at(call.q, start, head), q0, TILE, sequence);
        load_tile(to + TILE * qk_pitch, head_at(call.d_o, start, head), q0, TILE, sequence);
        load_facts(facts[step % stages], call, mask, head, sample, q0);
        cp_async_commit();
    };
    load_tile(k, head_at(call.k, k_start, group), k0, TILE, count);
    load_tile(v, head_at(call.v, k_start, group), k0, TILE, count);
    fetch(0);
    for (int step = 0; step < steps; step++) {
        const T *q = stage + step % stages * stage_size, *d_o = q + TILE * qk_pitch;
        const query_facts<TILE> &known = facts[step % stages];
        const int token = (int)mask.ahead + begin + step % query_tiles * TILE;
        float score[UNITS][2][4], dp[UNITS][2][4];
        cp_async_wait<0>();
        __syncthreads(); /* this step's queries are there, the last one's used */
        if (stages > 1 && step + 1 < steps) {
            fetch(step + 1);
        }
        product_rows(score, k + own * qk_pitch, q + first * qk_pitch, qk_pitch, call.k.padded);
        product_rows(dp, v + own * v_pitch, d_o + first * v_pitch, v_pitch, call.v.padded);
#pragma unroll
        for (int i = 0; i < UNITS * 8; i++) {
            gradient(score[i / 8][i / 4 % 2][i % 4], dp[i / 8][i / 4 % 2][i % 4],
                     call.scale * LOG2_E, known, first + i / 4 * 8 + lane_column() + i % 2,
                     own + lane_row() + i / 2 % 2 * 8, token, k0);
        }
        store_part(p, ROOM, own, first, score);
        store_part(ds, ROOM, own, first, dp);
        __syncthreads();
        add_tile<TILE>(dv, p + own * ROOM, d_o, v_pitch, side, call.v.padded);
        add_tile<TILE>(dk, ds + own * ROOM, q, qk_pitch, side, call.k.padded);
        if (stages == 1 && step + 1 < steps) {
            __syncthreads();
            fetch(step + 1);
        }
    }
    const int64_t groups = gridDim.y;
    float *rope = call.dk_rope + (sample * groups + group) * count * call.dk.rope_dim;
    store_gradient(head_at(call.dk, k_start, group), sum_at(call.dk_sum, call.dk, k_start, group),
                   rope, k0 + own, count, side, dk, call.scale);
    store_gradient(head_at(call.dv, k_start, group), sum_at(call.dv_sum, call.dv, k_start, group),
                   rope, k0 + own, count, side, dv, 1.0F);
}

/* dq of a tile of queries of one head: S = Q K^T, dP = dO V^T, dQ += dS K. Warps as above. QK:
 * qk_dim at most. Bytes: q, d_o, dq once; k, v once per tile and head, mostly from L2. FLOPs: T^2
 * (2 qk_dim + v_dim) per head of a causal sample. Bound as above. */
template <class T, int QK>
__global__ void __launch_bounds__(tiles<T>::both * 4, backward_blocks<T>(QK))
    attention_backward_queries_kernel(struct backward_call<T> call)
{
    constexpr int TILE = tiles<T>::both, UNITS = TILE / (16 * HALVES), ROOM = TILE + tiles<T>::pack;
    SMEM(struct query_facts<TILE>, facts, [1]);
    SMEM_DYN(dynamic);
    const int qk_pitch = call.q.pitch, v_pitch = call.v.pitch, stages = call.stages,
              stage_size = TILE * (qk_pitch + v_pitch);
    T *q = (T *)dynamic, *d_o = q + TILE * qk_pitch, *ds = d_o + TILE * v_pitch,
      *stage = ds + TILE * ROOM; /* k, v */
    const int64_t sequence = call.mask.sequence, head = blockIdx.y, sample = blockIdx.z,
                  start = sample * sequence, k_start = sample * call.mask.keys,
                  group = head / call.per_group,
                  q0 = (int64_t)(gridDim.x - 1 - blockIdx.x) * TILE; /* long ones first */
    const visibility mask = visibility_at(call.mask, sample);
    const int warp = threadIdx.x / 32, side = warp % HALVES, own = warp / HALVES * 16;
    const int first = side * UNITS * 16; /* of the warp's keys */
    float dq[QK / 32][2][4] = {};

    const auto fetch = [&](int k0) {
        T *to = stage + k0 / TILE % stages * stage_size;
        load_tile(to, head_at(call.k, k_start, group), k0, TILE, mask.keys);
        load_tile(to + TILE * qk_pitch, head_at(call.v, k_start, group), k0, TILE, mask.keys);
        cp_async_commit();
    };
    load_tile(q, head_at(call.q, start, head), q0, TILE, sequence);
    load_tile(d_o, head_at(call.d_o, start, head), q0, TILE, sequence);
    load_facts(facts[0], call, mask, head, sample, q0);
    const int begin = first_visible(mask, q0) / TILE * TILE, end = (int)end_visible(mask, q0, TILE);
    fetch(begin);
    for (int k0 = begin; k0 < end; k0 += TILE) {
        const T *k = stage + k0 / TILE % stages * stage_size, *v = k + TILE * qk_pitch;
        float score[UNITS][2][4], dp[UNITS][2][4];
        cp_async_wait<0>();
        __syncthreads(); /* this step's keys are there, the last one's used */
        if (stages > 1 && k0 + TILE < end) {
            fetch(k0 + TILE);
        }
        product_rows(score, q + own * qk_pitch, k + first * qk_pitch, qk_pitch, call.q.padded);
        product_rows(dp, d_o + own * v_pitch, v + first * v_pitch, v_pitch, call.v.padded);
#pragma unroll
        for (int i = 0; i < UNITS * 8; i++) {
            gradient(score[i / 8][i / 4 % 2][i % 4], dp[i / 8][i / 4 % 2][i % 4],
                     call.scale * LOG2_E, facts[0], own + lane_row() + i / 2 % 2 * 8,
                     first + i / 4 * 8 + lane_column() + i % 2, (int)(mask.ahead + q0), k0);
        }
        store_part(ds, ROOM, own, first, dp);
        __syncthreads();
        add_tile<TILE>(dq, ds + own * ROOM, k, qk_pitch, side, call.q.padded);
        if (stages == 1 && k0 + TILE < end) {
            __syncthreads();
            fetch(k0 + TILE);
        }
    }
    cp_async_wait<0>(); /* where the keys begin behind what is seen */
    store_gradient(head_at(call.dq, start, head), sum_at(call.dq_sum, call.dq, start, head),
                   nullptr, q0 + own, sequence, side, dq, call.scale);
}

/* dk_rope[n] = (add: its own +) the sum over groups, in their order. Bytes: parts once. Bound by
 * memory. */
template <class T>
__global__ void __launch_bounds__(ROPE_THREADS)
    attention_rope_kernel(T *dk_rope, int64_t stride, const float *__restrict__ parts,
                          int64_t groups, int64_t keys, int dim, int64_t count, bool add)
{
    const int64_t i = (int64_t)blockIdx.x * ROPE_THREADS + threadIdx.x;
    if (i >= count) {
        return;
    }
    const int64_t n = i / dim, sample = n / keys, one = keys * dim;
    T *to = dk_rope + n * stride + i % dim;
    float sum = 0;
    for (int64_t g = 0; g < groups; g++) {
        sum += parts[(sample * groups + g) * one + i % one];
    }
    store_one(to, add ? to_float(*to) + sum : sum);
}

/* ---- launches ---- */

/* Bytes of dynamic shared memory a block can have: sm_86 and sm_89 have 99 KiB. */
static size_t shared_bytes(size_t static_bytes)
{
    int device = 0, most = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) !=
            cudaSuccess) {
        return 0;
    }
    const size_t left = (size_t)most - static_bytes;
    return left < BACKWARD_SHARED ? left : (size_t)BACKWARD_SHARED;
}

template <class T, int QK, int V>
static void launch_backward(void *stream, backward_call<T> call,
                            const struct attention_shape *shape)
{
    constexpr int TILE = tiles<T>::both, THREADS = TILE * 4;
    const int rows = TILE * (call.k.pitch + call.v.pitch), /* of keys, or of queries */
        room = TILE * (TILE + tiles<T>::pack);
    call.stages =
        (3 * rows + 2 * room) * sizeof(T) <= shared_bytes(2 * sizeof(query_facts<TILE>)) ? 2 : 1;
    const size_t keys_bytes = sizeof(T) * (size_t)((1 + call.stages) * rows + 2 * room),
                 queries_bytes = sizeof(T) * (size_t)((1 + call.stages) * rows + room);
    const unsigned count = (unsigned)((shape->sequence + TILE - 1) / TILE),
                   key_count = (unsigned)((call.mask.keys + TILE - 1) / TILE),
                   batch = (unsigned)shape->batch;
    ALLOW_SMEM((attention_backward_keys_kernel<T, QK, V>), keys_bytes);
    ALLOW_SMEM((attention_backward_queries_kernel<T, QK>), queries_bytes);
    LAUNCH((attention_backward_keys_kernel<T, QK, V>),
           dim3(key_count, (unsigned)shape->kv_heads, batch), THREADS, keys_bytes,
           (cudaStream_t)stream, call);
    LAUNCH((attention_backward_queries_kernel<T, QK>), dim3(count, (unsigned)shape->heads, batch),
           THREADS, queries_bytes, (cudaStream_t)stream, call);
}

/* Floats of scratch: delta, then the parts of dk_rope. */
static int64_t delta_floats(const struct attention_shape *shape)
{
    return (shape->batch * shape->heads * shape->sequence + 3) / 4 * 4;
}

size_t cuda_attention_backward_scratch(const struct attention_shape *shape)
{
    const int64_t parts =
        shape->batch * shape->kv_heads * visibility_of(shape).keys * shape->rope_dim;
    return sizeof(float) * (size_t)(delta_floats(shape) + parts);
}

template <class T>
static backward_call<T> backward_inputs(const T *d_o, const T *o, const float *lse, const T *q,
                                        const T *k, const T *k_rope, const T *v,
                                        const struct attention_shape *s)
{
    const int qk = (int)s->qk_dim, v_dim = (int)s->v_dim, rope = (int)s->rope_dim;
    backward_call<T> call = {};
    call.q = head_rows_of<const T>(q, s->q_stride, qk, qk, nullptr, 0, 0);
    call.k = head_rows_of<const T>(k, s->k_stride, s->k_head_stride, qk - rope, k_rope,
                                   s->k_rope_stride, rope);
    call.v = head_rows_of<const T>(v, s->v_stride, s->v_head_stride, v_dim, nullptr, 0, 0);
    call.o = head_rows_of<const T>(o, s->o_stride, v_dim, v_dim, nullptr, 0, 0);
    call.d_o = head_rows_of<const T>(d_o, s->o_stride, v_dim, v_dim, nullptr, 0, 0);
    call.lse = lse;
    call.mask = visibility_of(s);
    call.heads = s->heads;
    call.per_group = s->heads / s->kv_heads;
    call.scale = s->scale;
    return call;
}

template <class T>
static void sum_rope(void *stream, const struct backward_call<T> &call, void *dk_rope,
                     const struct attention_shape *s)
{
    const int64_t keys = call.mask.keys, count = s->batch * keys * s->rope_dim;
    const unsigned blocks = (unsigned)((count + ROPE_THREADS - 1) / ROPE_THREADS);
    const int rope = (int)s->rope_dim;
    if (s->keys > 0) {
        LAUNCH((attention_rope_kernel<float>), blocks, ROPE_THREADS, 0, (cudaStream_t)stream,
               (float *)dk_rope, s->k_rope_stride, call.dk_rope, s->kv_heads, keys, rope, count,
               true);
    } else {
        LAUNCH((attention_rope_kernel<T>), blocks, ROPE_THREADS, 0, (cudaStream_t)stream,
               (T *)dk_rope, s->k_rope_stride, call.dk_rope, s->kv_heads, keys, rope, count, false);
    }
}

template <class T>
static void backward(void *stream, struct backward_call<T> call, void *dq, void *dk, void *dk_rope,
                     void *dv, const struct attention_shape *s, float *scratch)
{
    const int qk = (int)s->qk_dim, v_dim = (int)s->v_dim, rope = (int)s->rope_dim;
    const int64_t rows = s->batch * s->sequence;
    const bool part = s->keys > 0;
    call.dq = head_rows_of<T>((T *)dq, part ? s->heads * qk : s->q_stride, qk, qk, nullptr, 0, 0);
    call.dq_sum = part ? (float *)dq : nullptr;
    call.dk = head_rows_of<T>((T *)dk, s->k_stride, s->k_head_stride, qk - rope, (T *)dk_rope,
                              s->k_rope_stride, rope);
    call.dv = head_rows_of<T>((T *)dv, s->v_stride, s->v_head_stride, v_dim, nullptr, 0, 0);
    call.dk_sum = part ? (float *)dk : nullptr;
    call.dv_sum = part ? (float *)dv : nullptr;
    call.delta = scratch;
    call.dk_rope = scratch + delta_floats(s);
    LAUNCH((attention_delta_kernel<T>),
           (unsigned)((rows * s->heads * 32 + DELTA_THREADS - 1) / DELTA_THREADS), DELTA_THREADS, 0,
           (cudaStream_t)stream, call, rows);
    if (qk <= 64 && v_dim <= 64) {
        launch_backward<T, 64, 64>(stream, call, s);
    } else if (qk <= 128 && v_dim <= 128) {
        launch_backward<T, 128, 128>(stream, call, s);
    } else if (qk <= 192 && v_dim <= 128) {
        launch_backward<T, 192, 128>(stream, call, s);
    } else {
        launch_backward<T, 256, 256>(stream, call, s);
    }
    if (rope > 0) {
        sum_rope(stream, call, dk_rope, s);
    }
}

void cuda_attention_backward(void *stream, void *dq, void *dk, void *dk_rope, void *dv,
                             const void *d_o, const void *o, const float *lse, const void *q,
                             const void *k, const void *k_rope, const void *v,
                             const struct attention_shape *shape, void *scratch)
{
    assert(shape->heads % shape->kv_heads == 0 && shape->rope_dim <= shape->qk_dim);
    if (shape->batch == 0 || shape->sequence == 0) {
        return;
    }
    const auto run = [&](auto zero) {
        using T = decltype(zero);
        backward<T>(stream,
                    backward_inputs<T>((const T *)d_o, (const T *)o, lse, (const T *)q,
                                       (const T *)k, (const T *)k_rope, (const T *)v, shape),
                    dq, dk, dk_rope, dv, shape, (float *)scratch);
    };
    if (shape->dtype == DTYPE_F32) {
        run(0.0F);
    } else {
        run(bf16());
    }
}
