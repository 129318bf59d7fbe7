/* Linked into a second switchyard (-Wl,--wrap=gradients_square): with run.deterministic layout on
 * one rank and the CPU it says at its end, of the gradients of all steps, how many elements have
 * which exponent and what of the sum of squares they are. docs/determinism.md has the figures. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "trainer/model/gradients.h"

enum { LOWEST = -80, HIGHEST = 40, BINS = HIGHEST - LOWEST + 1 };

static struct {
    long long count[BINS], zeros;
    double squares[BINS];
    bool told;
} seen;

static void tell(void)
{
    double all = 0, below = 0;
    long long elements = 0, small = 0;
    for (int i = 0; i < BINS; i++) {
        all += seen.squares[i];
        elements += seen.count[i];
    }
    printf("gradients: %lld elements, %lld of them 0\n", elements + seen.zeros, seen.zeros);
    for (int i = 0; i < BINS; i++) {
        small += seen.count[i];
        below += seen.squares[i];
        if (seen.count[i] > 0) {
            printf("gradients: 2^%d %lld, up to here %.3g of those not 0, %.3g of the squares\n",
                   LOWEST + i, seen.count[i], (double)small / (double)elements, below / all);
        }
    }
}

void __real_gradients_square(const struct gradients *gradients, const int64_t *sum, int64_t count);
void __wrap_gradients_square(const struct gradients *gradients, const int64_t *sum, int64_t count);

void __wrap_gradients_square(const struct gradients *gradients, const int64_t *sum, int64_t count)
{
    __real_gradients_square(gradients, sum, count);
    for (int64_t i = 0; i < count; i++) {
        int exponent = 0;
        const double value = ldexp((double)(float)sum[i], -GRADIENT_BITS);
        (void)frexp(value, &exponent);
        exponent = exponent - 1 < LOWEST ? LOWEST : exponent - 1 > HIGHEST ? HIGHEST : exponent - 1;
        seen.zeros += value == 0;
        seen.count[exponent - LOWEST] += value != 0;
        seen.squares[exponent - LOWEST] += value * value;
    }
    if (!seen.told) {
        seen.told = atexit(tell) == 0;
    }
}
