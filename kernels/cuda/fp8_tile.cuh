/* fp8_tile: a block quantises a tile of 128 rows and 128 columns, along rows, along columns or
 * both, from one reading of it.
 *
 * A thread holds 4 neighbouring rows of 16 columns: 8 lanes side by side are a row of the tile, 32
 * groups of lanes its 128 rows. Loads and stores are 16 bytes a lane, whole lines of 128 bytes a
 * row. Row tiles: the largest value by shuffles among the 8 lanes. Column tiles: of the thread's 4
 * rows, by shuffles of the warp's 16, through shared memory of all 128; a thread's 4 codes of a
 * column are one word, which 16 kB of shared memory turn into 16-byte stores along tokens. There
 * the 16-byte places of a column's 128 bytes are permuted by its lane (place ^ column / 16): words
 * are written and places read without bank conflicts.
 *
 * Where numbers come from is a struct S: `held`, 16 numbers of a row, and a function
 * fp8_fetch(S, held &, row, column).
 */
#ifndef KERNELS_CUDA_FP8_TILE_CUH
#define KERNELS_CUDA_FP8_TILE_CUH

#include "kernels/cuda/fp8_code.cuh"

enum { FP8_THREADS = 256, FP8_WARPS = FP8_THREADS / 32, FP8_HOLD = 4 /* rows of a thread */ };

/* ---- which rows ---- */

struct fp8_place {
    int64_t row; /* the tile's first; its tokens, transposed, are columns 128 tile and on */
    int count;   /* its rows, 1 to 128; 0: there is no such tile */
};

/* Tile `tile` of the groups' tiles, one group after another. Every lane of a warp calls it. Without
 * offset all rows are one group. */
DEVICE struct fp8_place fp8_place_of(const int64_t *__restrict__ offset, int groups, int64_t rows,
                                     int tile)
{
    const int lane = threadIdx.x % 32;
    if (offset == nullptr) {
        const int64_t row = (int64_t)tile * FP8_TILE;
        return {row, (int)min((int64_t)FP8_TILE, rows - row)};
    }
    int before = 0;
    for (int from = 0; from < groups; from += 32) {
        const int g = from + lane;
        const int64_t begin = g < groups ? offset[g] : rows,
                      end = g < groups ? offset[g + 1] : rows;
        const int tiles = (int)((end - begin + FP8_TILE - 1) >> 7);
        int sum = tiles;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            const int other = __shfl_up_sync(0xffffffffu, sum, step);
            sum += lane >= step ? other : 0;
        }
        const unsigned later = __ballot_sync(0xffffffffu, before + sum > tile);
        if (later != 0) {
            const int at = __ffs((int)later) - 1;
            const int first = before + __shfl_sync(0xffffffffu, sum - tiles, at);
            const int64_t row =
                __shfl_sync(0xffffffffu, begin, at) + (int64_t)(tile - first) * FP8_TILE;
            const int64_t left = __shfl_sync(0xffffffffu, end, at) - row;
            return {row, (int)min((int64_t)FP8_TILE, left)};
        }
        before += __shfl_sync(0xffffffffu, sum, 31);
    }
    return {0, 0};
}

/* Tiles there can be. */
static inline unsigned fp8_place_most(int64_t rows, bool grouped, int64_t groups)
{
    const int64_t parts = grouped ? min(rows, groups) : 1;
    const int64_t tiles = rows > 0 ? (rows + parts * (FP8_TILE - 1)) / FP8_TILE : 0;
    assert(tiles <= 65535 && groups <= 1024 && rows <= INT32_MAX);
    return (unsigned)tiles;
}

/* ---- which part of the tile is the thread's ---- */

DEVICE int fp8_own_row()
{
    return FP8_HOLD * (int)(threadIdx.x / 8);
}

DEVICE int fp8_own_column()
{
    return FP8_PART * (int)(threadIdx.x % 8);
}

/* ---- along rows ---- */

/* The largest bits of a row's 8 lanes: every lane gets it. */
DEVICE uint32_t fp8_row_most(const float (&x)[FP8_PART])
{
    float most = fabsf(x[0]);
#pragma unroll
    for (int c = 1; c < FP8_PART; c++) {
        most = max_nan(most, fabsf(x[c]));
    }
#pragma unroll
    for (int bits = 1; bits < 8; bits *= 2) {
        most = max_nan(most, __shfl_xor_sync(0xffffffffu, most, bits));
    }
    return fp8_bits(most);
}

/* Sixteen codes to `to` (NULL: nowhere), counted where it is there and the tile is not bad. */
DEVICE void fp8_row_codes(uint8_t *to, const float (&x)[FP8_PART], float inverse, bool counted,
                          struct fp8_counts &own)
{
    uint32_t word[FP8_PART / 4];
#pragma unroll
    for (int i = 0; i < FP8_PART / 4; i++) {
        word[i] = encode4(__fmul_rn(x[4 * i], inverse), __fmul_rn(x[4 * i + 1], inverse),
                          __fmul_rn(x[4 * i + 2], inverse), __fmul_rn(x[4 * i + 3], inverse));
    }
    if (to != nullptr) {
        *(uint4 *)to = make_uint4(word[0], word[1], word[2], word[3]);
    }
    if (counted && to != nullptr && inverse == inverse) {
#pragma unroll
        for (int c = 0; c < FP8_PART; c++) {
            own.underflows += x[c] != 0;
            own.saturated += fp8_is_saturated(__fmul_rn(x[c], inverse));
        }
#pragma unroll
        for (int i = 0; i < FP8_PART / 4; i++) {
            own.underflows -= fp8_nonzero(word[i]);
        }
    }
}

/* Quantises row r of 8 lanes; writes it where `there` and the lane has columns. The scale. */
template <class H>
DEVICE float fp8_row_tile(const struct fp8_sink &q, const H &held, int64_t r, int64_t column,
                          bool there, bool power_of_two, bool counted, struct fp8_counts &own)
{
    float x[FP8_PART];
    fp8_values(x, held);
    const uint32_t most = fp8_row_most(x);
    const struct fp8_scale s = fp8_tile_scale(most, power_of_two);
    uint8_t *to = there && column < q.cols ? q.code + r * q.code_row + column : nullptr;
    fp8_row_codes(to, x, s.inverse, counted, own);
    if (counted && there && threadIdx.x % 8 == 0) {
        fp8_count_tile(own, most);
    }
    return s.scale;
}

/* The scales of the thread's 8 lanes' 4 rows, from row r on, of which `count` are there: lane i
 * writes scale[i]'s. `last`: the tile is the row's last. */
DEVICE void fp8_row_scales(const struct fp8_sink &q, float scale, int64_t r, int64_t tile,
                           int count, bool last)
{
    const int lane = threadIdx.x % 8;
    if (lane < FP8_HOLD && lane < count) {
        float *to = q.scale + (r + lane) * q.scale_row;
        to[tile * q.scale_tile] = scale;
        for (int i = 1; last && i <= q.rest; i++) {
            to[tile + i] = 0; /* packed: scale_tile is 1 */
        }
    }
}

template <class H>
DEVICE void fp8_row_tiles(const struct fp8_sink &q, const H (&x)[FP8_HOLD], int64_t r, int count,
                          int64_t column, bool power_of_two, bool counted, struct fp8_counts &own)
{
    float scale = 0;
#pragma unroll
    for (int j = 0; j < FP8_HOLD; j++) {
        const float s = fp8_row_tile(q, x[j], r + j, column, j < count, power_of_two, counted, own);
        scale = (int)(threadIdx.x % 8) == j ? s : scale;
    }
    const int64_t tile = column / FP8_TILE;
    fp8_row_scales(q, scale, r, tile, count, (tile + 1) * FP8_TILE >= q.cols);
}

/* ---- along columns ---- */

/* The largest of 4 columns of 16 rows: the lane's part of its warp's 128. Which: fp8_most_column.
 */
DEVICE uint4 fp8_column_most(const float (&x)[FP8_HOLD][FP8_PART])
{
    uint32_t most[FP8_PART];
#pragma unroll
    for (int c = 0; c < FP8_PART; c++) {
        float own = fabsf(x[0][c]);
#pragma unroll
        for (int j = 1; j < FP8_HOLD; j++) {
            own = max_nan(own, fabsf(x[j][c]));
        }
        most[c] = fp8_bits(own);
    }
    const bool upper = threadIdx.x & 16u, second = threadIdx.x & 8u;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? most[i] : most[i + 8], 16);
        most[i] = max(upper ? most[i + 8] : most[i], other);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t other = __shfl_xor_sync(0xffffffffu, second ? most[i] : most[i + 4], 8);
        most[i] = max(second ? most[i + 4] : most[i], other);
    }
    return make_uint4(most[0], most[1], most[2], most[3]);
}

DEVICE int fp8_most_column()
{
    return fp8_own_column() + (threadIdx.x & 16u ? 8 : 0) + (threadIdx.x & 8u ? 4 : 0);
}

/* Writes the words of the thread's columns: 4 tokens each, of which `mask` has those there are. */
DEVICE void fp8_column_words(uint32_t *code, const float4 *inverse,
                             const float (&x)[FP8_HOLD][FP8_PART], uint32_t mask)
{
    const int group = threadIdx.x % 8, warp = threadIdx.x / 32;
    const int at = ((warp ^ group) << 2) + (int)(threadIdx.x / 8 % 4);
#pragma unroll
    for (int quad = 0; quad < FP8_PART / 4; quad++) {
        const float4 four = inverse[group * 4 + quad];
        const float factor[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int c = 4 * quad + i;
            code[(FP8_PART * group + c) * 32 + at] =
                mask & encode4(__fmul_rn(x[0][c], factor[i]), __fmul_rn(x[1][c], factor[i]),
                               __fmul_rn(x[2][c], factor[i]), __fmul_rn(x[3][c], factor[i]));
        }
    }
}

/* What those words were made of; the tiles themselves are counted elsewhere. */
DEVICE void fp8_column_count(const uint32_t *code, const float4 *inverse,
                             const float (&x)[FP8_HOLD][FP8_PART], struct fp8_counts &own)
{
    const int group = threadIdx.x % 8, warp = threadIdx.x / 32;
    const int at = ((warp ^ group) << 2) + (int)(threadIdx.x / 8 % 4);
#pragma unroll
    for (int c = 0; c < FP8_PART; c++) {
        const float factor = ((const float *)inverse)[FP8_PART * group + c];
        if (factor == factor) {
            own.underflows -= fp8_nonzero(code[(FP8_PART * group + c) * 32 + at]);
#pragma unroll
            for (int j = 0; j < FP8_HOLD; j++) {
                own.underflows += x[j][c] != 0;
                own.saturated += fp8_is_saturated(__fmul_rn(x[j][c], factor));
            }
        }
    }
}

/* The block's words to rows `first` and on, columns `column` and on, of code[rows, cols]. */
DEVICE void fp8_column_store(uint8_t *to, int64_t rows, int64_t cols,
                             const uint4 (*code)[FP8_TILE / 16], int64_t first, int64_t column)
{
    const int place = (int)threadIdx.x % 8;
#pragma unroll
    for (int i = 0; i < FP8_TILE * 8 / FP8_THREADS; i++) {
        const int c = (int)threadIdx.x / 8 + i * FP8_THREADS / 8;
        if (first + c < rows && column + 16 * place < cols) {
            *(uint4 *)(to + (first + c) * cols + column + 16 * place) =
                code[c][place ^ (c / FP8_PART)];
        }
    }
}

/* Tokens [128 tile, 128 tile + 128) of t, `count` of them there, of columns `first` (the block's)
 * and on. `code`: shared memory that no thread of the block uses any more, and another call's is
 * other memory. All threads of the block. */
template <class H>
DEVICE void fp8_column_tiles(const struct fp8_rows &t, const H (&held)[FP8_HOLD],
                             uint4 (*code)[FP8_TILE / 16], int64_t tile, int count, int64_t first,
                             bool power_of_two, bool counted, struct fp8_counts &own)
{
    SMEM(float4, inverse, [FP8_TILE / 4]);
    const int thread = (int)threadIdx.x, warp = thread / 32;
    float x[FP8_HOLD][FP8_PART];
#pragma unroll
    for (int j = 0; j < FP8_HOLD; j++) {
        fp8_values(x[j], held[j]);
    }
    uint4(*part)[FP8_TILE / 4] = (uint4(*)[FP8_TILE / 4]) code; /* of each warp, at first */
    part[warp][fp8_most_column() / 4] = fp8_column_most(x);
    __syncthreads();
    if (thread < FP8_TILE) {
        uint32_t most = 0;
#pragma unroll
        for (int w = 0; w < FP8_WARPS; w++) {
            most = max(most, ((const uint32_t *)part[w])[thread]);
        }
        const struct fp8_scale s = fp8_tile_scale(most, power_of_two);
        ((float *)inverse)[thread] = s.inverse;
        if (first + thread < t.rows) {
            t.scale[tile * t.pitch + first + thread] = s.scale;
            if (counted) {
                fp8_count_tile(own, most);
            }
        }
    }
    __syncthreads();
    const int left = count - fp8_own_row();
    const uint32_t mask = left >= 4 ? 0xffffffffu : left <= 0 ? 0u : (1u << 8 * left) - 1u;
    fp8_column_words((uint32_t *)code, inverse, x, mask);
    if (counted) {
        fp8_column_count((const uint32_t *)code, inverse, x, own);
    }
    __syncthreads();
    fp8_column_store(t.code, t.rows, t.cols, code, first, tile * FP8_TILE);
}

/* ---- the whole ---- */

/* Rows of a tile that are counted. All threads of the block. */
template <class S> DEVICE int64_t fp8_present(const S &, const struct fp8_place &place)
{
    return place.count;
}
struct fp8_from_bf16;
DEVICE int64_t fp8_present(const struct fp8_from_bf16 &from, const struct fp8_place &place);

template <class S> struct fp8_job {
    S source;
    struct fp8_sink q;
    struct fp8_rows t;
    int64_t rows, cols;
    const int64_t *offset;
    int groups;
    bool power_of_two;
    struct fp8_counters *counters; /* NULL: not counted */
};

/* Bytes per number: what S reads, and 1 written for q, 1 for t, where wanted. FLOPs: about 10, of
 * integers mostly. Bound by memory. */
template <class S, bool Q, bool T>
__global__ void __launch_bounds__(FP8_THREADS, 2) fp8_tile_kernel(const struct fp8_job<S> job)
{
    const int tile = (int)blockIdx.y;
    const struct fp8_place place = fp8_place_of(job.offset, job.groups, job.rows, tile);
    if (place.count == 0) {
        return;
    }
    const int64_t first = (int64_t)blockIdx.x * FP8_TILE, column = first + fp8_own_column();
    const int own_row = fp8_own_row();
    const bool counted = job.counters != nullptr;
    struct fp8_counts own = {0, 0, 0, 0};
    typename S::held x[FP8_HOLD];
#pragma unroll
    for (int j = 0; j < FP8_HOLD; j++) {
        x[j] = {};
        if (column < job.cols && own_row + j < place.count) {
            fp8_fetch(job.source, x[j], place.row + own_row + j, column);
        }
    }
    if constexpr (Q) {
        fp8_row_tiles(job.q, x, place.row + own_row, place.count - own_row, column,
                      job.power_of_two, counted, own);
    }
    if constexpr (T) {
        SMEM(uint4, code, [FP8_TILE][FP8_TILE / 16]);
        fp8_column_tiles(job.t, x, code, tile, place.count, first, job.power_of_two, counted && !Q,
                         own);
    }
    if (counted) {
        fp8_count(job.counters, own,
                  blockIdx.x == 0 ? fp8_present(job.source, place) * job.cols : 0);
    }
}

template <class S, bool Q, bool T>
static void fp8_launch(void *stream, const struct fp8_job<S> &job)
{
    const unsigned tiles = fp8_place_most(job.rows, job.offset != nullptr, job.groups);
    assert(!Q || job.q.cols == job.cols);
    assert(!T ||
           (job.t.rows == job.cols && job.t.pitch >= job.cols && aligned(job.t.code) &&
            job.t.cols % FP8_PART == 0 &&
            job.t.cols >= fp8_token_columns(job.rows, job.offset != nullptr ? job.groups : 1)));
    if (tiles > 0 && job.cols > 0) {
        LAUNCH((fp8_tile_kernel<S, Q, T>), dim3((unsigned)fp8_tiles(job.cols), tiles), FP8_THREADS,
               0, (cudaStream_t)stream, job);
    }
}

/* Whichever of q and t are there. */
template <class S> static void fp8_run(void *stream, const struct fp8_job<S> &job)
{
    if (job.q.code != nullptr && job.t.code != nullptr) {
        fp8_launch<S, true, true>(stream, job);
    } else if (job.q.code != nullptr) {
        fp8_launch<S, true, false>(stream, job);
    } else if (job.t.code != nullptr) {
        fp8_launch<S, false, true>(stream, job);
    }
}

/* ---- sources ---- */

/* Rows of x, in the order of `row` (NULL: as they stand); row < 0: zeros. */
struct fp8_from_bf16 {
    using held = struct fp8_bf16s;
    const bf16 *x;
    const int32_t *row;
    int64_t rows, cols; /* of x */
};

DEVICE void fp8_fetch(const struct fp8_from_bf16 &from, struct fp8_bf16s &x, int64_t r,
                      int64_t column)
{
    const int64_t row = from.row != nullptr ? from.row[r] : r;
    if (row >= from.rows) {
        __trap();
    }
    if (row >= 0) {
        fp8_load(x, from.x + row * from.cols + column);
    }
}

DEVICE int64_t fp8_present(const struct fp8_from_bf16 &from, const struct fp8_place &place)
{
    const int own = (int)threadIdx.x;
    return from.row == nullptr
               ? place.count
               : __syncthreads_count(own < place.count && from.row[place.row + own] >= 0);
}

static inline struct fp8_from_bf16 fp8_from_tensor(struct tensor x, const int32_t *row)
{
    assert(x.dtype == DTYPE_BF16 && x.dim[1] % FP8_PART == 0 && aligned(x.data));
    return {(const bf16 *)x.data, row, x.dim[0], x.dim[1]};
}

/* Codes with their scales. */
struct fp8_from_codes {
    using held = struct fp8_codes;
    const uint8_t *code;
    const float *scale;
    int64_t cols, pitch;
};

DEVICE void fp8_fetch(const struct fp8_from_codes &from, struct fp8_codes &x, int64_t r,
                      int64_t column)
{
    fp8_load(x.word, from.code + r * from.cols + column);
    x.scale = __ldg(from.scale + column / FP8_TILE * from.pitch + r);
}

#endif
