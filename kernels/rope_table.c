#include "kernels/rope_table.h"

#include <math.h>

void rope_table(float *table, int64_t positions, int64_t dim, double theta)
{
    const int64_t half = dim / 2;
    for (int64_t j = 0; j < half; j++) {
        const float frequency = 1.0F / (float)pow(theta, 2.0 * (double)j / (double)dim);
        for (int64_t p = 0; p < positions; p++) {
            const float angle = (float)p * frequency;
            table[p * dim + j] = (float)cos((double)angle);
            table[p * dim + half + j] = (float)sin((double)angle);
        }
    }
}
