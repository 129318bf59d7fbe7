#include "kernels/cuda/fp8_swiglu.cuh"

template <class G> struct backward_job {
    G gate_up;
    struct fp8_from_bf16 dh;
    struct fp8_sink d;
    struct fp8_rows dt, ht;
    int64_t rows, width; /* F = 128 n */
    const int64_t *offset;
    int groups;
    bool power_of_two;
    struct fp8_counters *counters;
};

/* What a thread keeps until it knows the scales of its columns: shared memory for lack of
 * registers, each thread its own places. */
struct held_memory {
    uint4 part[3][FP8_HOLD][2][FP8_THREADS]; /* gradients of gate and up, h */
};

DEVICE void keep(struct held_memory *memory, int which, int j, const struct fp8_bf16s &x)
{
    memory->part[which][j][0][threadIdx.x] = make_uint4(x.pair[0], x.pair[1], x.pair[2], x.pair[3]);
    memory->part[which][j][1][threadIdx.x] = make_uint4(x.pair[4], x.pair[5], x.pair[6], x.pair[7]);
}

/* Transposed tiles of what was kept; they are put together where it was. */
DEVICE void kept_columns(const struct fp8_rows &t, struct held_memory *memory, int which, int tile,
                         int count, int64_t first, bool power_of_two)
{
    struct fp8_bf16s x[FP8_HOLD];
    struct fp8_counts unused = {0, 0, 0, 0};
#pragma unroll
    for (int j = 0; j < FP8_HOLD; j++) {
        const uint4 a = memory->part[which][j][0][threadIdx.x];
        const uint4 b = memory->part[which][j][1][threadIdx.x];
        x[j] = {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
    }
    __syncthreads();
    fp8_column_tiles(t, x, (uint4(*)[FP8_TILE / 16]) memory->part[which], tile, count, first,
                     power_of_two, false, unused);
}

/* A block: 128 rows of 128 columns of dh, gate and up, and everything that comes of them: plain and
 * transposed gradients of gate and up, and h transposed. Bytes per number of dh: 6 read (of codes
 * 4), 2 + 2 + 1 written, 30 per tile of 128. FLOPs: about 100, of integers mostly, and two exps.
 * Bound by memory. */
template <class G>
__global__ void __launch_bounds__(FP8_THREADS, 2)
    fp8_swiglu_backward_kernel(const struct backward_job<G> job)
{
    SMEM_DYN(dynamic);
    struct held_memory *memory = (struct held_memory *)dynamic;
    const int tile = (int)blockIdx.y, own_row = fp8_own_row();
    const struct fp8_place place = fp8_place_of(job.offset, job.groups, job.rows, tile);
    if (place.count == 0) {
        return;
    }
    const int64_t first = (int64_t)blockIdx.x * FP8_TILE, column = first + fp8_own_column();
    const int64_t row = place.row + own_row;
    const bool counted = job.counters != nullptr, two = job.power_of_two;
    struct fp8_counts own = {0, 0, 0, 0};
    float scale[2] = {0, 0};
#pragma unroll 1
    for (int j = 0; j < FP8_HOLD; j++) {
        typename G::held gate = {}, up = {};
        struct fp8_bf16s dh = {}, dgate, dup, h;
        const bool there = own_row + j < place.count, mine = (int)(threadIdx.x % 8) == j;
        if (there) {
            fp8_gate_up(job.gate_up, gate, up, row + j, column, job.width);
            fp8_fetch(job.dh, dh, row + j, column);
        }
        fp8_swiglu(h, gate, up);
        keep(memory, 2, j, h);
        fp8_swiglu_gradient(dgate, dup, dh, gate, up);
        keep(memory, 0, j, dgate);
        keep(memory, 1, j, dup);
        const float a = fp8_row_tile(job.d, dgate, row + j, column, there, two, counted, own);
        const float b =
            fp8_row_tile(job.d, dup, row + j, job.width + column, there, two, counted, own);
        scale[0] = mine ? a : scale[0], scale[1] = mine ? b : scale[1];
    }
    const int count = max(0, min(place.count - own_row, (int)FP8_HOLD));
    fp8_row_scales(job.d, scale[0], row, blockIdx.x, count, false);
    fp8_row_scales(job.d, scale[1], row, gridDim.x + blockIdx.x, count, false);
    kept_columns(job.dt, memory, 0, tile, place.count, first, two);
    kept_columns(job.dt, memory, 1, tile, place.count, job.width + first, two);
    kept_columns(job.ht, memory, 2, tile, place.count, first, two);
    if (counted) {
        fp8_count(job.counters, own, blockIdx.x == 0 ? place.count * job.width * 2 : 0);
    }
}

template <class G>
static void run(void *stream, G gate_up, struct fp8_rows d, struct fp8_rows dt, struct fp8_rows ht,
                struct tensor dh, const int64_t *offset, int64_t groups, const struct fp8_how *how)
{
    const int64_t rows = dh.dim[0], width = dh.dim[1];
    const struct fp8_from_bf16 from = fp8_from_tensor(dh, nullptr);
    if (d.code != nullptr && dt.code != nullptr && ht.code != nullptr && width % FP8_TILE == 0) {
        const unsigned tiles = fp8_place_most(rows, offset != nullptr, groups);
        if (rows > 0 && width > 0) {
            (void)ALLOW_SMEM(fp8_swiglu_backward_kernel<G>, sizeof(struct held_memory));
            LAUNCH(fp8_swiglu_backward_kernel<G>, dim3((unsigned)fp8_tiles(width), tiles),
                   FP8_THREADS, sizeof(struct held_memory), (cudaStream_t)stream,
                   backward_job<G>{gate_up, from, fp8_sink_of(d), dt, ht, rows, width, offset,
                                   (int)groups, how->power_of_two, how->counters});
        }
        return;
    }
    /* Tiles of d are not tiles of gate and of up: each reads what it needs. */
    fp8_run<struct fp8_from_gradient<G>>(stream, {{gate_up, from, width},
                                                  fp8_sink_of(d),
                                                  dt,
                                                  rows,
                                                  2 * width,
                                                  offset,
                                                  (int)groups,
                                                  how->power_of_two,
                                                  how->counters});
    if (ht.code != nullptr) {
        fp8_launch<struct fp8_from_swiglu<G>, false, true>(stream, {{gate_up, width},
                                                                    {},
                                                                    ht,
                                                                    rows,
                                                                    width,
                                                                    offset,
                                                                    (int)groups,
                                                                    how->power_of_two,
                                                                    nullptr});
    }
}

void cuda_fp8_swiglu_backward(void *stream, struct fp8_rows d, struct fp8_rows dt,
                              struct fp8_rows ht, struct tensor dh, struct tensor gate_up,
                              struct fp8_rows kept, const int64_t *offset, int64_t groups,
                              const struct fp8_how *how)
{
    const bool codes = gate_up.data == nullptr;
    assert(d.code == nullptr || (d.rows == dh.dim[0] && d.cols == 2 * dh.dim[1]));
    assert(codes ? kept.rows == dh.dim[0] && kept.cols == 2 * dh.dim[1]
                 : gate_up.dim[0] == dh.dim[0] && gate_up.dim[1] == 2 * dh.dim[1]);
    if (codes) {
        run(stream, fp8_from_rows(kept), d, dt, ht, dh, offset, groups, how);
    } else {
        run(stream, fp8_from_tensor(gate_up, nullptr), d, dt, ht, dh, offset, groups, how);
    }
}
