#include <string.h>

#include "kernels/cpu/cpu.h"

/* Small inputs (a few MiB at most): one thread keeps the order fixed and is fast enough. */
void cpu_column_sums(struct device *device, double *out, const float *x, int64_t rows, int64_t cols)
{
    (void)device;
    memset(out, 0, (size_t)cols * sizeof *out);
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t col = 0; col < cols; col++) {
            out[col] += (double)x[row * cols + col];
        }
    }
}
