/* gemm_hopper: what the products by wgmma have in common (gemm_sm90.cu, gemm_fp8_sm90.cu): the
 * ring, the way from accumulators to rows of C, tensor maps.
 */
#ifndef KERNELS_CUDA_GEMM_HOPPER_CUH
#define KERNELS_CUDA_GEMM_HOPPER_CUH

#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/ptx.cuh"

enum { STAGED = 32 }; /* columns of C a warp stores at a time, of 16 rows */

/* Where a ring of STAGES stands: stages used so far, of all tiles. */
template <int STAGES> struct ring {
    uint32_t used;

    __device__ __forceinline__ int stage() const
    {
        return (int)(used % STAGES);
    }
    __device__ __forceinline__ uint32_t parity() const
    {
        return used / STAGES & 1;
    }
};

/* Makes a ring's barriers: one thread fills a stage, `readers` warps give it back. All threads call
 * it and then wait for each other. */
template <int STAGES>
DEVICE void ring_init(uint64_t (&full)[STAGES], uint64_t (&empty)[STAGES], int readers)
{
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(&full[i], 1);
            mbarrier_init(&empty[i], (uint32_t)readers);
        }
        fence_mbarrier_init();
    }
}

/* A lane's share of a warp's 16 rows of STAGED columns of C: four columns of row l / 8 and of every
 * fourth below. Whole parts of four only (wide_c). */
template <class T> struct strip {
    T *c;         /* the first part */
    int64_t down; /* from a part to the next */
    int parts;    /* that are there */
    float old[4][4];

    __device__ __forceinline__ void fetch(bool add)
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (add && i < parts) {
                load(old[i], c + i * down);
            }
        }
    }
    /* from(row): where in shared memory the lane's four columns of its first row + `row` are. */
    template <class F> __device__ __forceinline__ void put(bool add, F from)
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float part[4];
            load(part, from(4 * i));
            if (i < parts) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    part[j] = add ? old[i][j] + part[j] : part[j];
                }
                store(c + i * down, part);
            }
        }
    }
};

/* Accumulators lie scattered: 32 columns of the warp's 16 rows at a time are turned in shared
 * memory into parts of four columns, eight of them side by side in a row. Groups of 16 bytes are
 * swizzled so that neither side meets in a bank. What is added to is on its way meanwhile. */
template <enum gemm_pass pass, class T, int HALF>
DEVICE void store_tile(const struct gemm &g, const struct gemm_tile &t, const float (&sum)[HALF],
                       float *out, int64_t m, int64_t first_n)
{
    constexpr int WIDTH = 2 * HALF; /* columns */
    const int lane = (int)threadIdx.x % 32, row = lane / 8, column = lane % 8 * 4;
    T *c = (T *)g.c + (pass == GEMM_WEIGHT ? t.expert * g.stride : 0) + (m + row) * g.ldc;
    const int rows = (int)max((int64_t)0, min((t.m_end - m - row + 3) / 4, (int64_t)4));
    auto from = [&](int below) {
        const int at = row + below;
        return out + at * STAGED + (column ^ at % 4 * 8);
    };
#pragma unroll
    for (int first = 0; first < WIDTH; first += STAGED) {
        const int64_t n = first_n + first + column;
        const bool own = n < g.n && column < WIDTH - first;
        struct strip<T> part = {
        };
        part.c = c + n;
        part.down = 4 * g.ldc;
        part.parts = g.wide_c && own ? rows : 0;
        part.fetch(g.add);
#pragma unroll
        /* Rows lane / 4 and, odd i, 8 below. */
        for (int i = 0; i < STAGED / 4 && 2 * i < HALF - first / 2; i++) {
            const int at = lane / 4 + i % 2 * 8, group = i / 2 * 2 + lane % 4 / 2;
            const float pair[2] = {sum[first / 2 + 2 * i], sum[first / 2 + 2 * i + 1]};
            store(out + at * STAGED + (group ^ at % 4 * 2) * 4 + lane % 2 * 2, pair);
        }
        __syncwarp();
        if (g.wide_c) {
            part.put(g.add, from);
        } else {
#pragma unroll 1
            for (int i = 0; i < 16; i += 4) {
                float four[4];
                load(four, from(i));
                if (own) {
                    store_c<pass>(g, t, m + row + i, n, four);
                }
            }
        }
        __syncwarp();
    }
}

/* ---- launch ---- */

using encode_function = decltype(&cuTensorMapEncodeTiled);

/* The driver's encoder: the library is not linked. nullptr: there is none. */
static encode_function find_encoder()
{
    void *function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &found);
    return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? (encode_function)function
                                                                        : nullptr;
}

/* A matrix of rows x cols, or `planes` of them (rank 3); box: what one load brings. Strides in
 * elements of `bytes`. */
struct matrix_map {
    const void *data;
    CUtensorMapDataType type;
    int bytes, rank;
    int64_t cols, rows, ld, planes, plane;
    int box_cols, box_rows;
    CUtensorMapSwizzle swizzle;
};

static bool encode(CUtensorMap *map, const struct matrix_map &m)
{
    static const encode_function encoder = find_encoder();
    const cuuint64_t dims[3] = {(cuuint64_t)m.cols, (cuuint64_t)m.rows, (cuuint64_t)m.planes};
    const int64_t plane = m.planes > 1 ? m.plane : m.rows * m.ld;
    const cuuint64_t strides[2] = {(cuuint64_t)(m.ld * m.bytes), (cuuint64_t)(plane * m.bytes)};
    const cuuint32_t box[3] = {(cuuint32_t)m.box_cols, (cuuint32_t)m.box_rows, 1};
    const cuuint32_t steps[3] = {1, 1, 1};
    return encoder != nullptr && encoder(map, m.type, (cuuint32_t)m.rank, (void *)(uintptr_t)m.data,
                                         dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                         m.swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                         CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

static int attribute(enum cudaDeviceAttr which)
{
    int device = 0, value = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
                   cudaDeviceGetAttribute(&value, which, device) == cudaSuccess
               ? value
               : 0;
}

#endif
