/* check_tensor: launchers of test_tensor.cu. */
#ifndef EMULATOR_CHECK_TENSOR_H
#define EMULATOR_CHECK_TENSOR_H

#include <stdint.h>

/* How a 64-deep operand lies in shared memory: the descriptor's fields, and bytes to the next 16 of
 * k. */
struct operand_layout {
    uint32_t leading, stride, k_step;
    int swizzle; /* enum wgmma_swizzle */
};
struct wgmma_case {
    int n, a_mn_major, b_mn_major;
    const uint8_t *a, *b; /* device: tiles of 64 x 64 and n x 64 bf16, as in shared memory */
    float *c;             /* device: [64, n] */
    struct operand_layout layout_a, layout_b;
};

#ifdef __cplusplus
extern "C" {
#endif
void launch_mma(const uint16_t *a, const uint16_t *b, float *c);
void launch_matrix_transpose(const uint16_t *x, uint16_t *y);
void launch_wgmma(const struct wgmma_case *w);
#ifdef __cplusplus
}
#endif

#endif
