#include "kernels/rope_table.h"

#include <assert.h>
#include <math.h>

enum { MAX_DIM = 1024 };

/* The pair that turns `rotations` times in the original context, as a real index. */
static double turning_pair(double rotations, int64_t dim, double theta, double positions)
{
    const double pi = 3.14159265358979323846;
    return (double)dim * log(positions / (rotations * 2 * pi)) / (2 * log(theta));
}

static double between(double value, double low, double high)
{
    return value < low ? low : value > high ? high : value;
}

void rope_frequencies(float *inverse, int64_t dim, double theta, const struct rope_yarn *yarn)
{
    double low = 0, high = 0;
    if (yarn->factor > 0) {
        low = fmax(floor(turning_pair(yarn->beta_fast, dim, theta, yarn->original_positions)), 0);
        high = fmin(ceil(turning_pair(yarn->beta_slow, dim, theta, yarn->original_positions)),
                    (double)(dim - 1));
        high += low == high ? 0.001 : 0; /* no division by zero below */
    }
    for (int64_t j = 0; j < dim / 2; j++) {
        const float base = (float)pow(theta, 2.0 * (double)j / (double)dim);
        inverse[j] = 1.0F / base;
        if (yarn->factor > 0) {
            const float ramp = (float)between(((double)j - low) / (high - low), 0, 1);
            const float stretched = 1.0F / ((float)yarn->factor * base);
            inverse[j] = stretched * ramp + inverse[j] * (1.0F - ramp);
        }
    }
}

void rope_table(float *table, int64_t positions, int64_t dim, double theta,
                const struct rope_yarn *yarn)
{
    const int64_t half = dim / 2;
    const double factor = yarn->factor > 0 ? yarn->attention_factor : 1;
    float inverse[MAX_DIM / 2];
    assert(dim <= MAX_DIM);
    rope_frequencies(inverse, dim, theta, yarn);
    for (int64_t p = 0; p < positions; p++) {
        for (int64_t j = 0; j < half; j++) {
            const float angle = (float)p * inverse[j];
            table[p * dim + j] = (float)(cos((double)angle) * factor);
            table[p * dim + half + j] = (float)(sin((double)angle) * factor);
        }
    }
}
