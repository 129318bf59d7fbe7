/* copy_rows: the one kernel behind embedding_forward, gather_rows, scatter_rows and copy_columns.
 */
#ifndef KERNELS_CUDA_COPY_ROWS_CUH
#define KERNELS_CUDA_COPY_ROWS_CUH

#include <stdint.h>

struct row_copy {
    void *y;
    const void *x;
    int64_t rows, bytes;          /* copied: rows of that many bytes */
    int64_t y_stride, x_stride;   /* bytes from one row to the next */
    const int32_t *y_row, *x_row; /* row n goes to y_row[n] and comes from x_row[n]; NULL: n */
    int64_t y_rows, x_rows;       /* rows there are: indices beyond them trap */
    bool zeros;                   /* x_row < 0 gives zeros, else it traps; y_row < 0 skips */
};

void copy_rows(void *stream, struct row_copy copy);

#endif
