/* gemm_fp8_cost: how long a product of gemm_fp8_sm90.cu takes by each of its tiles.
 *
 * NOTE: guesses. The rates are what is published of the H100 (tensor cores, f32 lanes, L2's 6150
 * bytes a cycle for all multiprocessors), the 1500 cycles at the ends of a tile are counted, not
 * measured: no GPU has run any of it. On one, cuda_fp8_linear_by times a tile of one's choice. */
#ifndef KERNELS_CUDA_GEMM_FP8_COST_CUH
#define KERNELS_CUDA_GEMM_FP8_COST_CUH

#include <math.h>

#include "kernels/cuda/cuda_ops_fp8.h"

/* Of one tile: every step takes what its slowest part takes; then it is stored. Of all: whole waves
 * of them. An expert's last row tile is half full on average. */
static inline double fp8_tile_cycles(bool weight, const struct cuda_fp8_tile &t,
                                     const struct cuda_fp8_shape &s)
{
    const double products = 4096, lanes = 128; /* a cycle: of 8-bit numbers, of f32 */
    const double from_l2 = fmin(64, 6150.0 / s.multiprocessors), to_memory = 16; /* bytes a cycle */
    const double ring = 1500; /* filling it, finding the tile, the first and last latency */
    const double part = t.rows / t.cluster; /* rows of A that come from L2 for this tile */
    const double rows = t.rows, cols = t.cols, groups = (double)(s.groups > 0 ? s.groups : 1);
    const double m = (double)(weight ? s.out : s.rows), n = (double)(weight ? s.in : s.out);
    const double k = weight ? (double)s.rows / groups : (double)s.in;
    const double step =
        fmax(fmax(rows * cols * FP8_TILE / products, (part + cols) * FP8_TILE / from_l2),
             rows * cols * (weight ? 2 : 1) / lanes);
    const double tile =
        ceil(k / FP8_TILE) * step + rows * cols * (weight ? 8 : 2) / to_memory + ring;
    const double spread = weight || groups < 2 ? 0 : fmin(groups, m) / 2;
    const double down = ceil(m / rows + spread), across = ceil(n / (cols * t.cluster));
    const double at_once = floor((double)s.multiprocessors / t.cluster);
    return ceil(down * across * (weight ? groups : 1) / fmax(at_once, 1)) * tile;
}

#endif
