/* samples: kernels that test the emulator, each with a launcher callable from C. */
#ifndef EMULATOR_SAMPLES_H
#define EMULATOR_SAMPLES_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
void launch_row_sum(cudaStream_t stream, const float *x, float *sum, int n, int blocks);
/* count[experts] += how often each expert occurs in expert[n]; experts <= 64 */
void launch_histogram(cudaStream_t stream, const int *expert, int n, int experts, int *count,
                      int blocks);
#ifdef __cplusplus
}
#endif

#endif
