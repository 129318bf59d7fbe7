/* rope_table: cos and sin of rotary position embedding (Su et al. 2021). */
#ifndef KERNELS_ROPE_TABLE_H
#define KERNELS_ROPE_TABLE_H

#include <stdint.h>

/* table[positions, dim] f32: cos for j < dim/2, then sin, of pos * theta^(-2j/dim); the angle is an
 * f32 product, as the published models compute it. */
void rope_table(float *table, int64_t positions, int64_t dim, double theta);

#endif
