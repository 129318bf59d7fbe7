/* pair_sum: rows that both blocks of a cluster want come from global memory once: each block loads
 * half of a row for both, into the same ring of stages. */
#include "samples.h"

#include "kernels/cuda/ptx.cuh"

enum { PAIR = 2, HALF = 32, RING = 2 };

struct shared_pair {
    alignas(128) float row[RING][PAIR][HALF];
    uint64_t full[RING], empty[RING];
};

/* Warp 0 loads, warp 1 adds. */
__global__ void __launch_bounds__(64)
    pair_sum_kernel(const __grid_constant__ CUtensorMap map, float *sum, int rows)
{
    SMEM_DYN(raw);
    struct shared_pair *s = reinterpret_cast<struct shared_pair *>(raw);
    const int rank = (int)cluster_rank(), first = (int)blockIdx.x / PAIR * rows;
    const int lane = (int)threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int i = 0; i < RING; i++) {
            mbarrier_init(&s->full[i], 1);
#ifdef MUTANT_EARLY_REUSE
            mbarrier_init(&s->empty[i], 1);
#else
            mbarrier_init(&s->empty[i], PAIR);
#endif
        }
        fence_mbarrier_init();
    }
#ifdef MUTANT_NO_SYNC_AT_START
    __syncthreads();
#else
    cluster_sync();
#endif
    if (threadIdx.x == 0) {
        for (int i = 0; i < rows; i++) {
            uint64_t *full = &s->full[i % RING];
            mbarrier_wait(&s->empty[i % RING], (i / RING & 1) ^ 1);
#ifdef MUTANT_HALF_EXPECTED
            mbarrier_arrive_expect_tx(full, HALF * 4);
#else
            mbarrier_arrive_expect_tx(full, PAIR * HALF * 4);
#endif
#if defined(MUTANT_OWN_MASK)
            const uint16_t mask = (uint16_t)(1 << rank);
#elif defined(MUTANT_WRONG_MASK)
            const uint16_t mask = 1;
#else
            const uint16_t mask = 3;
#endif
            tma_load_2d_multicast(s->row[i % RING][rank], &map, full, rank * HALF, first + i, mask);
        }
    }
    if (threadIdx.x >= 32) {
        float own = 0;
        for (int i = 0; i < rows; i++) {
            mbarrier_wait(&s->full[i % RING], i / RING & 1);
            own += s->row[i % RING][0][lane] + 2 * s->row[i % RING][1][lane];
            __syncwarp();
            if (lane == 0) {
                mbarrier_arrive(&s->empty[i % RING]);
#if !defined(MUTANT_NO_REMOTE_ARRIVE) && !defined(MUTANT_EARLY_REUSE)
                mbarrier_arrive_at(&s->empty[i % RING], (uint32_t)rank ^ 1);
#endif
            }
        }
        sum[blockIdx.x * HALF + lane] = own * (float)(rank + 1);
    }
#ifndef MUTANT_NO_SYNC_AT_END
    cluster_sync(); /* the other block arrives here until then */
#endif
}

extern "C" void launch_pair_sum(cudaStream_t stream, const CUtensorMap *map_x, float *sum,
                                int pairs, int rows)
{
    LAUNCH_CLUSTER(pair_sum_kernel, PAIR, PAIR * pairs, 64, sizeof(struct shared_pair), stream,
                   *map_x, sum, rows);
}
