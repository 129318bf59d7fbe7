/* decode: attention of one new token per sequence over a cache, what attention_decode and
 * mla_decode share.
 *
 * A block takes a few heads that read the same cached rows, and one part of the rows; parts have a
 * length that depends on the capacity alone, so a sequence's result depends on nothing but the
 * sequence. A second kernel joins the parts in order. f32 from q to o.
 */
#ifndef KERNELS_CUDA_DECODE_CUH
#define KERNELS_CUDA_DECODE_CUH

#include "kernels/cuda/rows.cuh"

enum {
    THREADS = 256,
    ROW_THREADS = 8, /* threads that share a row's dot products */
    TILE = 64,       /* rows whose weights are in shared memory at once: two per eight threads */
    PART_ROWS = 256, /* of a cache at least; more if that makes more than PARTS parts */
    PARTS = 32,
    MAX_GROUPS = 16, /* of threads with the same columns of the values */
    JOIN_THREADS = 128
};
static constexpr float LOG2_E = 1.44269504F, MASKED = -1e30F;

/* Queries, the rows they meet, and what becomes of a part. A key is [k: k_dim | rope: rope_dim]. */
template <class T> struct decode_call {
    const float *latent;      /* [B, H, k_dim] the queries' first k_dim, scaled; or NULL: in q */
    const T *q;               /* head h of sequence b: q + b q_stride + h q_head */
    int64_t q_stride, q_head; /* elements */
    const T *k, *rope, *v;    /* row j of sequence b: row b * capacity + j */
    int64_t k_row, v_row;     /* elements from row to row; rope: rope_dim */
    int64_t k_dim, rope_dim, v_dim;
    int64_t k_head, v_head; /* elements from group to group inside a row */
    const int32_t *lengths;
    int64_t heads, per_group, capacity, window, part_rows, parts;
    float scale;     /* with log2(e) */
    float *most_sum; /* [B, H, parts, 2] largest score, sum of weights */
    float *sums;     /* [B, H, parts, v_dim] sum of weights times values */
};

/* Rows [low, high) that a sequence's query sees. */
struct span {
    int low, high;
};

template <class T> DEVICE struct span visible_rows(const struct decode_call<T> &call, int64_t b)
{
    const int length = call.lengths[b];
    if (length < 0 || length > call.capacity) {
        __trap();
    }
    return {call.window > 0 ? max(length - (int)call.window, 0) : 0, length};
}

/* q[head][dim], scaled, of `heads` heads from `first` on. */
template <class T>
DEVICE void load_heads(float *q, const struct decode_call<T> &call, int64_t b, int64_t first,
                       int heads)
{
    const int dim = (int)(call.k_dim + call.rope_dim), k_dim = (int)call.k_dim;
    for (int i = threadIdx.x; i < heads * dim; i += THREADS) {
        const int64_t head = first + i / dim;
        const int c = i % dim;
        const T *own = call.q + b * call.q_stride + head * call.q_head;
        if (call.latent == nullptr) {
            q[i] = to_float(own[c]) * call.scale;
        } else {
            q[i] = c < k_dim ? call.latent[(b * call.heads + head) * k_dim + c]
                             : to_float(own[call.q_head - dim + c]) * call.scale;
        }
    }
}

/* score[head][row] of the tile's rows; eight threads take rows `own` and own + TILE / 2. */
template <class T, int V, int HEADS>
DEVICE void score_tile(float (*score)[TILE], const float *q, const struct decode_call<T> &call,
                       int64_t b, int64_t group, int heads, int first, struct span rows)
{
    const int dim = (int)(call.k_dim + call.rope_dim), lane = threadIdx.x % ROW_THREADS,
              own = threadIdx.x / ROW_THREADS;
    float sum[HEADS][2] = {};
    const T *k[2], *rope[2];
#pragma unroll
    for (int i = 0; i < 2; i++) { /* rows that are not there: some other row, for nothing */
        const int64_t row = b * call.capacity + min(first + own + i * TILE / 2, rows.high - 1);
        k[i] = call.k + row * call.k_row + group * call.k_head;
        rope[i] = call.rope + row * call.rope_dim - call.k_dim;
    }
    for (int c = lane * V; c < dim; c += ROW_THREADS * V) {
        float key[2][V];
        load(key[0], (c < call.k_dim ? k[0] : rope[0]) + c);
        load(key[1], (c < call.k_dim ? k[1] : rope[1]) + c);
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            if (h < heads) {
                float query[V];
                load(query, q + h * dim + c);
#pragma unroll
                for (int j = 0; j < V; j++) {
                    sum[h][0] += query[j] * key[0][j];
                    sum[h][1] += query[j] * key[1][j];
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < HEADS * 2; i++) {
        float &s = sum[i / 2][i % 2];
        const int row = own + i % 2 * TILE / 2;
        if (i / 2 < heads) { /* the same for all threads */
#pragma unroll
            for (int bits = ROW_THREADS / 2; bits > 0; bits /= 2) {
                s += __shfl_xor_sync(0xffffffffu, s, bits);
            }
            if (lane == 0) {
                const bool seen = first + row >= rows.low && first + row < rows.high;
                score[i / 2][row] = seen ? s : MASKED;
            }
        }
    }
}

/* What online softmax keeps of a head. */
struct head_state {
    float most, sum, shrink; /* shrink: of what was summed before this tile */
};

/* Scores of a tile become weights; a warp a head. */
DEVICE void weigh_tile(float (*score)[TILE], struct head_state *state, int heads)
{
    const int lane = threadIdx.x % 32;
    for (int h = threadIdx.x / 32; h < heads; h += THREADS / 32) {
        float *row = score[h], a = row[lane], b = row[lane + 32], high = fmaxf(a, b);
#pragma unroll
        for (int bits = 16; bits > 0; bits /= 2) {
            high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, bits));
        }
        const struct head_state old = state[h];
        high = fmaxf(high, old.most);
        a = exp2f(a - high);
        b = exp2f(b - high);
        row[lane] = a;
        row[lane + 32] = b;
        const float sum = warp_sum(a + b), shrink = exp2f(old.most - high);
        __syncwarp(); /* all lanes have read the state */
        if (lane == 0) {
            state[h] = {high, old.sum * shrink + sum, shrink};
        }
    }
}

/* Threads of the values: `columns` pairs of columns, `groups` times: each group takes a run of a
 * tile's rows. */
struct value_threads {
    int columns, groups;
};

static __host__ __device__ inline struct value_threads value_threads_of(int64_t v_dim)
{
    int columns = THREADS / MAX_GROUPS;
    while (columns < THREADS && columns * 2 < v_dim) {
        columns *= 2;
    }
    return {columns, THREADS / columns};
}

/* Two columns; V > 1: they exist and stand on two elements. */
template <int V> DEVICE void load_pair(float (&x)[2], const float *p, bool second)
{
    if constexpr (V > 1) {
        const float2 two = *(const float2 *)p;
        x[0] = two.x, x[1] = two.y;
    } else {
        x[0] = p[0], x[1] = second ? p[1] : 0;
    }
}

template <int V> DEVICE void load_pair(float (&x)[2], const bf16 *p, bool second)
{
    if constexpr (V > 1) {
        unpack(x, *(const uint32_t *)p);
    } else {
        x[0] = to_float(p[0]), x[1] = second ? to_float(p[1]) : 0;
    }
}

/* sum[head] += weights times the thread's two columns of its group's rows. */
template <int V, class T, int HEADS>
DEVICE void add_values(float (&sum)[HEADS][2], float (*weight)[TILE],
                       const struct head_state *state, const T *v, int64_t v_row, int heads,
                       int64_t left, int last, struct value_threads threads)
{
    const int run = TILE / threads.groups, from = (int)threadIdx.x / threads.columns * run;
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        sum[h][0] *= state[h].shrink;
        sum[h][1] *= state[h].shrink;
    }
    for (int row = from; row < from + run && row <= last; row += 4) {
        float value[4][2];
#pragma unroll
        for (int i = 0; i < 4; i++) { /* rows that are not there have no weight */
            load_pair<V>(value[i], v + min(row + i, last) * v_row, left > 1);
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            if (h < heads) {
                float w[4];
                load(w, weight[h] + row);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    sum[h][0] += w[i] * value[i][0];
                    sum[h][1] += w[i] * value[i][1];
                }
            }
        }
    }
}

/* Groups of threads add up, in order, into the part's sums. `room`: THREADS * HEADS * 2 floats. */
template <int HEADS>
DEVICE void join_groups(float *out, int64_t out_stride, const float (&sum)[HEADS][2], float *room,
                        int heads, int64_t columns, struct value_threads threads)
{
    const int width = threads.columns * 2, own = threadIdx.x % threads.columns * 2,
              group = (int)threadIdx.x / threads.columns;
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        room[(group * HEADS + h) * width + own] = sum[h][0];
        room[(group * HEADS + h) * width + own + 1] = sum[h][1];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < heads * width; i += THREADS) {
        float total = 0;
        for (int g = 0; g < threads.groups; g++) {
            total += room[(g * HEADS + i / width) * width + i % width];
        }
        if (i % width < columns) {
            out[i / width * out_stride + i % width] = total;
        }
    }
}

/* Block (part, heads and columns, sequence). Bytes: the cached rows once per HEADS heads (values of
 * MLA are its keys and come from the cache), queries, sums of parts. FLOPs: 2 (k_dim + rope_dim +
 * v_dim) per head and row. Bound by memory for few heads a group, by FMA for MLA. */
template <class T, int V, int HEADS>
__global__ void __launch_bounds__(THREADS, 16 / HEADS)
    decode_part_kernel(struct decode_call<T> call)
{
    SMEM(float, score, [HEADS][TILE]);
    SMEM(struct head_state, state, [HEADS]);
    SMEM_DYN(dynamic);
    float *q = (float *)dynamic; /* at the end room for the groups' sums */
    const struct value_threads threads = value_threads_of(call.v_dim);
    const int64_t pieces = (call.v_dim + threads.columns * 2 - 1) / (threads.columns * 2),
                  chunks = (call.per_group + HEADS - 1) / HEADS, b = blockIdx.z,
                  piece = blockIdx.y % pieces, chunk = blockIdx.y / pieces % chunks,
                  group = blockIdx.y / pieces / chunks, part = blockIdx.x,
                  head = group * call.per_group + chunk * HEADS,
                  column = (piece * threads.columns + threadIdx.x % threads.columns) * 2;
    const int heads = (int)min((int64_t)HEADS, call.per_group - chunk * HEADS);
    struct span rows = visible_rows(call, b);
    rows.low = max(rows.low, (int)(part * call.part_rows));
    rows.high = min(rows.high, (int)((part + 1) * call.part_rows));
    if (rows.low >= rows.high) {
        return;
    }
    load_heads(q, call, b, head, heads);
    if (threadIdx.x < HEADS) {
        state[threadIdx.x] = {MASKED, 0, 0};
    }
    const int64_t left = call.v_dim - column;
    const T *v =
        call.v + b * call.capacity * call.v_row + group * call.v_head + (left > 0 ? column : 0);
    float sum[HEADS][2] = {};
    for (int first = rows.low; first < rows.high; first += TILE) {
        __syncthreads();
        score_tile<T, V, HEADS>(score, q, call, b, group, heads, first, rows);
        __syncthreads();
        weigh_tile(score, state, heads);
        __syncthreads();
        add_values<V>(sum, score, state, v + first * call.v_row, call.v_row, heads, left,
                      min((int)TILE, rows.high - first) - 1, threads);
    }
    __syncthreads();
    const int64_t at = (b * call.heads + head) * call.parts + part;
    join_groups(call.sums + at * call.v_dim + piece * threads.columns * 2, call.parts * call.v_dim,
                sum, q, heads, call.v_dim - piece * threads.columns * 2, threads);
    if (piece == 0 && (int)threadIdx.x < heads) {
        call.most_sum[(at + threadIdx.x * call.parts) * 2] = state[threadIdx.x].most;
        call.most_sum[(at + threadIdx.x * call.parts) * 2 + 1] = state[threadIdx.x].sum;
    }
}

/* Parts of one head of one sequence, in order. out: f32 [B, H, v_dim] for MLA, else o. Bytes: the
 * sums of parts once. Bound by memory. */
template <class T, class O>
__global__ void __launch_bounds__(JOIN_THREADS)
    decode_join_kernel(O *out, int64_t out_stride, struct decode_call<T> call)
{
    const int64_t head = blockIdx.x, b = blockIdx.y, at = (b * call.heads + head) * call.parts;
    const struct span rows = visible_rows(call, b);
    const int64_t from = rows.low / call.part_rows,
                  to = (rows.high + call.part_rows - 1) / call.part_rows;
    const float *most_sum = call.most_sum + at * 2, *sums = call.sums + at * call.v_dim;
    float most = MASKED, total = 0;
    for (int64_t part = from; part < to; part++) {
        most = fmaxf(most, most_sum[part * 2]);
    }
    for (int64_t part = from; part < to; part++) {
        total += exp2f(most_sum[part * 2] - most) * most_sum[part * 2 + 1];
    }
    for (int64_t c = threadIdx.x; c < call.v_dim; c += JOIN_THREADS) {
        float sum = 0;
        for (int64_t part = from; part < to; part++) {
            sum += exp2f(most_sum[part * 2] - most) * sums[part * call.v_dim + c];
        }
        store_one(out + b * out_stride + head * call.v_dim + c, total > 0 ? sum / total : 0);
    }
}

/* ---- launches ---- */

static inline int64_t part_rows(int64_t capacity)
{
    const int64_t even = (capacity + PARTS - 1) / PARTS;
    return even > PART_ROWS ? (even + TILE - 1) / TILE * TILE : (int64_t)PART_ROWS;
}

static inline int64_t part_count(int64_t capacity)
{
    return (capacity + part_rows(capacity) - 1) / part_rows(capacity);
}

/* Floats of the parts' results, values of `v_dim` columns. */
static inline int64_t part_floats(const struct decode_shape *shape, int64_t v_dim)
{
    return shape->batch * shape->heads * part_count(shape->capacity) * (v_dim + 2);
}

template <class T>
static decode_call<T> decode_call_of(const T *q, const int32_t *lengths, int64_t v_dim,
                                     const struct decode_shape *shape, float *scratch)
{
    decode_call<T> call = {};
    call.q = q;
    call.q_stride = shape->q_stride;
    call.q_head = shape->qk_dim;
    call.v_dim = v_dim;
    call.lengths = lengths;
    call.heads = shape->heads;
    call.capacity = shape->capacity;
    call.part_rows = part_rows(shape->capacity);
    call.parts = part_count(shape->capacity);
    call.scale = shape->scale * LOG2_E;
    call.sums = scratch;
    call.most_sum = scratch + shape->batch * shape->heads * call.parts * v_dim;
    return call;
}

/* Scores and sums of all parts, then o (or the latent outputs) from them. */
template <class T, int V, int HEADS, class O>
static void attend(void *stream, O *out, int64_t out_stride, const struct decode_call<T> &call,
                   int64_t batch)
{
    const int64_t groups = call.heads / call.per_group, dim = call.k_dim + call.rope_dim,
                  columns = 2 * value_threads_of(call.v_dim).columns,
                  blocks = groups * ((call.per_group + HEADS - 1) / HEADS) *
                           ((call.v_dim + columns - 1) / columns);
    const size_t room = sizeof(float) * (size_t)(HEADS * (dim > 2 * THREADS ? dim : 2 * THREADS));
    ALLOW_SMEM((decode_part_kernel<T, V, HEADS>), room);
    LAUNCH((decode_part_kernel<T, V, HEADS>),
           dim3((unsigned)call.parts, (unsigned)blocks, (unsigned)batch), THREADS, room,
           (cudaStream_t)stream, call);
    LAUNCH((decode_join_kernel<T, O>), dim3((unsigned)call.heads, (unsigned)batch), JOIN_THREADS, 0,
           (cudaStream_t)stream, out, out_stride, call);
}

#endif
