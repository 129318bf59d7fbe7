/* rope_table: cosines and sines of the rotary embedding (Su et al. 2021), as the rope op takes
 * them, with YaRN (Peng et al. 2023) where a context was extended.
 */
#ifndef KERNELS_ROPE_TABLE_H
#define KERNELS_ROPE_TABLE_H

#include <stdint.h>

struct rope_yarn {
    double factor; /* s: how many times longer the context is than it was; 0: no YaRN */
    double beta_fast, beta_slow;
    double original_positions; /* L0 */
    double attention_factor;   /* multiplies cosines and sines */
};

/* inverse[dim / 2]: radians per position of each pair, in f32 as published code computes them. With
 * YaRN: f_i = theta^(2i/dim) is divided by s where it turns less than beta_slow times in L0
 * positions, kept where it turns more than beta_fast times, mixed linearly between. */
void rope_frequencies(float *inverse, int64_t dim, double theta, const struct rope_yarn *yarn);

/* table [positions, dim]: cos of the dim/2 angles of a position, then sin. */
void rope_table(float *table, int64_t positions, int64_t dim, double theta,
                const struct rope_yarn *yarn);

#endif
