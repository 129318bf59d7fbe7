/* tma_transpose: Y[N, M] = X[M, N]^T of float by 32 x 32 tiles: TMA in, shared memory, TMA out. */
#include "samples.h"

#include "kernels/cuda/ptx.cuh"

enum { SIDE = 32 };

struct shared_transpose {
    alignas(128) float in[SIDE][SIDE];
    alignas(128) float out[SIDE][SIDE];
    uint64_t full;
};

__global__ void __launch_bounds__(128)
    tma_transpose_kernel(const __grid_constant__ CUtensorMap map_x,
                         const __grid_constant__ CUtensorMap map_y, int tiles)
{
    SMEM_DYN(raw);
    struct shared_transpose *s = reinterpret_cast<struct shared_transpose *>(raw);
    if (threadIdx.x == 0) {
        mbarrier_init(&s->full, 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    for (int i = 0; i < tiles; i++) {
        int row = (blockIdx.x * tiles + i) * SIDE, column = blockIdx.y * SIDE;
        if (threadIdx.x == 0) {
            mbarrier_arrive_expect_tx(&s->full, SIDE * SIDE * 4);
            tma_load_2d(s->in, &map_x, &s->full, column, row);
        }
        mbarrier_wait(&s->full, i & 1);
#ifndef MUTANT_NO_STORE_WAIT
        if (threadIdx.x == 0)
            tma_store_wait_read<0>(); /* the last tile has left `out` */
#endif
        __syncthreads();
        for (int e = threadIdx.x; e < SIDE * SIDE; e += 128)
            s->out[e % SIDE][e / SIDE] = s->in[e / SIDE][e % SIDE];
#ifndef MUTANT_NO_PROXY_FENCE
#ifdef MUTANT_ONE_THREAD_FENCES
        if (threadIdx.x == 0)
#endif
            fence_proxy_async();
#endif
        __syncthreads();
        if (threadIdx.x == 0) {
            tma_store_2d(&map_y, s->out, row, column);
            tma_store_commit();
        }
    }
    if (threadIdx.x == 0)
        tma_store_wait<0>();
}

extern "C" void launch_tma_transpose(cudaStream_t stream, const CUtensorMap *map_x,
                                     const CUtensorMap *map_y, int m, int n, int tiles)
{
    LAUNCH(tma_transpose_kernel,
           dim3((m + tiles * SIDE - 1) / (tiles * SIDE), (n + SIDE - 1) / SIDE), 128,
           sizeof(struct shared_transpose), stream, *map_x, *map_y, tiles);
}
