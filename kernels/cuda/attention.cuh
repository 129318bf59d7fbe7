/* attention: what the kernels of attention.cu and attention_backward.cu share: rows of one head in
 * shared memory, products of tiles of 16 x 16, and the mask.
 *
 * A warp multiplies tiles as mma.m16n8k16 does: thread l of the warp holds, of a 16 x 8 tile of the
 * result, rows l / 4 and l / 4 + 8 and columns 2 (l % 4) and 2 (l % 4) + 1: c[0], c[1] of the first
 * row, c[2], c[3] of the second. A unit is two such tiles side by side, 16 columns. bf16 uses the
 * tensor cores, f32 the same layout on CUDA cores; sums are f32 in both, the factors what is
 * stored.
 *
 * Tiles in shared memory are rows of `padded` columns, a multiple of 16 (zeros beyond the head's
 * own), 16 bytes apart from the next row, so that ldmatrix meets no bank twice.
 */
#ifndef KERNELS_CUDA_ATTENTION_CUH
#define KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/rows.cuh"

static constexpr float LOG2_E = 1.44269504F, LN_2 = 0.693147181F;
static constexpr float MASKED = -1e30F; /* finite: a row without a visible key yet is no NaN */
static constexpr int MAX_HEAD_DIM = 256;

/* Rows of a tile by element: as many as fit the shared memory of sm_80 with heads of 256. */
template <class T> struct tiles;
template <> struct tiles<bf16> {
    static constexpr int queries = 64, keys = 64; /* forward */
    static constexpr int both = 64;               /* backward, of queries and of keys */
    static constexpr int pack = 8;                /* elements in 16 bytes */
};
template <> struct tiles<float> {
    static constexpr int queries = 64, keys = 32, both = 32, pack = 4;
};

/* ---- rows of heads in global memory ---- */

/* T const for inputs. Row t of head h of sample b: [own + (b sequence + t) stride + h head_stride:
 * own_dim | rope + (b sequence + t) rope_stride: rope_dim]. */
template <class T> struct head_rows {
    T *own, *rope;
    int64_t stride, rope_stride, head_stride;
    int own_dim, rope_dim;
    int padded, pitch; /* of a tile: columns, elements from row to row */
    bool wide;         /* all rows on 16 bytes, whole packs */
    bool paired;       /* all rows on two elements */
};

template <class T>
static inline bool rows_aligned(const T *p, int64_t stride, int64_t other, int dim, int elements)
{
    return (uintptr_t)p % ((size_t)elements * sizeof(T)) == 0 && stride % elements == 0 &&
           other % elements == 0 && dim % elements == 0;
}

template <class T>
static inline head_rows<T> head_rows_of(T *own, int64_t stride, int64_t head_stride, int dim,
                                        T *rope, int64_t rope_stride, int rope_dim)
{
    constexpr int pack = tiles<std::remove_const_t<T>>::pack;
    const int padded = (dim + rope_dim + 15) / 16 * 16;
    const auto all = [=](int elements) {
        return rows_aligned(own, stride, head_stride, dim, elements) &&
               (rope_dim == 0 || rows_aligned(rope, rope_stride, 0, rope_dim, elements));
    };
    assert(padded <= MAX_HEAD_DIM);
    return {own,      rope,   stride,        rope_stride, head_stride, dim,
            rope_dim, padded, padded + pack, all(pack),   all(2)};
}

/* The rows of one head from row `row` on. */
template <class T> DEVICE head_rows<T> head_at(struct head_rows<T> in, int64_t row, int64_t head)
{
    in.own += row * in.stride + head * in.head_stride;
    in.rope += in.rope_dim > 0 ? row * in.rope_stride : 0;
    return in;
}

/* tile = rows [first, first + count) of a head, zeros from row `rows` on; eight threads a row. The
 * caller commits and waits. */
template <class T>
DEVICE void load_tile(T *tile, const struct head_rows<const T> &in, int first, int count, int rows)
{
    constexpr int pack = tiles<T>::pack, threads = 8;
    const int lane = threadIdx.x % threads, dim = in.own_dim + in.rope_dim;
    for (int r = threadIdx.x / threads; r < count; r += blockDim.x / threads) {
        const bool real = first + r < rows;
        const int64_t row = real ? first + r : 0;
        const T *own = in.own + row * in.stride;
        const T *rope = in.rope_dim > 0 ? in.rope + row * in.rope_stride : own;
        T *to = tile + r * in.pitch;
        if (in.wide) {
            for (int c = lane * pack; c < in.padded; c += threads * pack) {
                const bool there = real && c < dim;
                const T *from = c < in.own_dim || !there ? own : rope - in.own_dim;
                cp_async_16(to + c, there ? from + c : own, there ? 16 : 0);
            }
        } else {
            for (int c = lane; c < in.padded; c += threads) {
                const T *from = c < in.own_dim ? own : rope - in.own_dim;
                store_one(to + c, real && c < dim ? to_float(from[c]) : 0.0F);
            }
        }
    }
}

/* Columns column, column + 1 of a row of `columns`, those that exist. */
template <class T>
DEVICE void store_pair(T *row, int column, int columns, float a, float b, bool paired)
{
    if (paired && column + 1 < columns) {
        const float two[2] = {a, b};
        if constexpr (sizeof(T) == 2) {
            *(uint32_t *)(row + column) = pack(two);
        } else {
            *(float2 *)(row + column) = make_float2(two[0], two[1]);
        }
        return;
    }
    if (column < columns) {
        store_one(row + column, a);
    }
    if (column + 1 < columns) {
        store_one(row + column + 1, b);
    }
}

/* ---- products ---- */

DEVICE int lane_row()
{
    return (int)threadIdx.x % 32 / 4;
}

DEVICE int lane_column()
{
    return (int)threadIdx.x % 4 * 2;
}

/* Left factors, 16 x 16. */
template <class T> struct fragment;
template <> struct fragment<bf16> {
    uint32_t r[4];
};
template <> struct fragment<float> {
    const float *a; /* shared, rows `pitch` apart */
    int pitch;
};

DEVICE void load_fragment(struct fragment<bf16> &f, const bf16 *a, int pitch)
{
    const int lane = threadIdx.x % 32;
    ldmatrix_x4(f.r, a + lane % 16 * pitch + lane / 16 * 8);
}

DEVICE void load_fragment(struct fragment<float> &f, const float *a, int pitch)
{
    f.a = a;
    f.pitch = pitch;
}

/* A unit of a result becomes a left factor; `room`: shared [16, 16], rows `pitch` apart, of this
 * warp alone (f32). */
DEVICE void make_fragment(struct fragment<bf16> &f, const float (&c)[2][4], bf16 *, int)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        f.r[i] = pack(c[i / 2] + i % 2 * 2);
    }
}

DEVICE void make_fragment(struct fragment<float> &f, const float (&c)[2][4], float *room, int pitch)
{
    __syncwarp(); /* the last use of the room */
#pragma unroll
    for (int i = 0; i < 4; i++) {
        store_pair(room + (lane_row() + i % 2 * 8) * pitch, lane_column() + i / 2 * 8, 16,
                   c[i / 2][i % 2 * 2], c[i / 2][i % 2 * 2 + 1], true);
    }
    __syncwarp();
    load_fragment(f, room, pitch);
}

DEVICE void multiply(float (&c)[2][4], const struct fragment<bf16> &a, const uint32_t (&b)[4])
{
    mma_m16n8k16_bf16(c[0], a.r, {b[0], b[1]});
    mma_m16n8k16_bf16(c[1], a.r, {b[2], b[3]});
}

/* c += a b^T, b's 16 rows are c's columns. */
DEVICE void multiply_rows(float (&c)[2][4], const struct fragment<bf16> &a, const bf16 *b,
                          int pitch)
{
    const int lane = threadIdx.x % 32;
    uint32_t r[4];
    ldmatrix_x4(r, b + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8);
    multiply(c, a, r);
}

DEVICE void multiply_rows(float (&c)[2][4], const struct fragment<float> &a, const float *b,
                          int pitch)
{
#pragma unroll
    for (int k = 0; k < 16; k += 4) {
        float left[2][4];
        load(left[0], a.a + lane_row() * a.pitch + k);
        load(left[1], a.a + (lane_row() + 8) * a.pitch + k);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float right[4];
            load(right, b + (j / 2 * 8 + lane_column() + j % 2) * pitch + k);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                c[j / 2][j % 2] += left[0][e] * right[e];
                c[j / 2][2 + j % 2] += left[1][e] * right[e];
            }
        }
    }
}

/* c += a b, b[16, 16 columns of its rows]. */
DEVICE void multiply_columns(float (&c)[2][4], const struct fragment<bf16> &a, const bf16 *b,
                             int pitch)
{
    const int lane = threadIdx.x % 32;
    uint32_t r[4];
    ldmatrix_x4_trans(r, b + lane % 16 * pitch + lane / 16 * 8);
    multiply(c, a, r);
}

DEVICE void multiply_columns(float (&c)[2][4], const struct fragment<float> &a, const float *b,
                             int pitch)
{
#pragma unroll
    for (int k = 0; k < 16; k++) {
        const float left[2] = {a.a[lane_row() * a.pitch + k], a.a[(lane_row() + 8) * a.pitch + k]};
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const float2 right = *(const float2 *)(b + k * pitch + j * 8 + lane_column());
            c[j][0] += left[0] * right.x;
            c[j][1] += left[0] * right.y;
            c[j][2] += left[1] * right.x;
            c[j][3] += left[1] * right.y;
        }
    }
}

/* c[16, 16 N] = a[16, depth] b[16 N, depth]^T. */
template <int N, class T>
DEVICE void product_rows(float (&c)[N][2][4], const T *a, const T *b, int pitch, int depth)
{
#pragma unroll
    for (int i = 0; i < N * 8; i++) {
        c[i / 8][i / 4 % 2][i % 4] = 0;
    }
    for (int k = 0; k < depth; k += 16) {
        struct fragment<T> left;
        load_fragment(left, a + k, pitch);
#pragma unroll
        for (int i = 0; i < N; i++) {
            multiply_rows(c[i], left, b + i * 16 * pitch + k, pitch);
        }
    }
}

/* c += a b, unit i being the columns of b from first + i step on, those below `columns`. */
template <int N, class T>
DEVICE void add_columns(float (&c)[N][2][4], const struct fragment<T> &a, const T *b, int pitch,
                        int first, int step, int columns)
{
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (first + i * step < columns) {
            multiply_columns(c[i], a, b + first + i * step, pitch);
        }
    }
}

/* ---- mask ---- */

/* Queries and keys of a sample: all of its tokens; or, of a part of an attention, query t stands
 * where key ahead + t does or would, `before` tokens before the first key. */
struct visibility {
    int64_t sequence, keys, ahead, before, window;
    const int32_t *first; /* of the sample, or NULL */
};

static inline struct visibility visibility_of(const struct attention_shape *shape)
{
    const int64_t keys = shape->keys > 0 ? shape->keys : shape->sequence;
    assert(shape->ahead >= 0);
    return {shape->sequence, keys, shape->ahead, shape->before, shape->window, shape->first};
}

DEVICE visibility visibility_at(struct visibility mask, int64_t sample)
{
    mask.first = mask.first != nullptr ? mask.first + sample * mask.sequence : nullptr;
    return mask;
}

/* The first key that query t sees, perhaps behind all; the last one is ahead + t, or the last key.
 * Never falls with t. */
DEVICE int first_visible(const struct visibility &mask, int64_t t)
{
    t = min(t, mask.sequence - 1);
    const int64_t window = mask.window > 0 ? max(mask.ahead + t - mask.window + 1, (int64_t)0) : 0;
    return max((int)window, mask.first != nullptr ? mask.first[t] - (int)mask.before : 0);
}

DEVICE int last_visible(const struct visibility &mask, int64_t t)
{
    return (int)min(mask.ahead + t, mask.keys - 1);
}

/* Behind the last key that a query of [q0, q0 + count) sees. */
DEVICE int64_t end_visible(const struct visibility &mask, int64_t q0, int count)
{
    return min(mask.ahead + min(q0 + count, mask.sequence), mask.keys);
}

#endif
