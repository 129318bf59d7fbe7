#include <assert.h>
#include <string.h>

#include "kernels/cpu/fp8.h"
#include "kernels/cpu/rows.h"

struct gathered {
    struct tensor x;
    const int32_t *row; /* NULL: in order */
};

CPU_CLONES static void fill_gathered(float *tile, const void *from, struct fp8_window w)
{
    const struct gathered *g = from;
    for (int64_t r = 0; r < w.rows; r++) {
        const int64_t source = g->row != NULL ? g->row[w.row + r] : w.row + r;
        assert(source < g->x.dim[0]);
        if (source < 0) {
            memset(tile + r * FP8_TILE, 0, (size_t)w.cols * sizeof *tile);
        } else {
            row_load(tile + r * FP8_TILE, g->x.data, g->x.dtype, source * g->x.dim[1] + w.col,
                     w.cols);
        }
    }
}

void cpu_fp8_quantize(struct device *device, struct fp8_rows q, struct fp8_rows t, struct tensor x,
                      const int32_t *row, int64_t rows, const int64_t *offset, int64_t groups,
                      const struct fp8_how *how)
{
    const struct gathered from = {x, row};
    const struct fp8_work work = {.rows = rows,
                                  .cols = x.dim[1],
                                  .out = fp8_out_rows(q),
                                  .t = t,
                                  .offset = offset,
                                  .groups = groups,
                                  .row = row,
                                  .how = how,
                                  .fill = fill_gathered,
                                  .from = &from};
    assert(x.dtype == DTYPE_BF16 && (row != NULL || rows <= x.dim[0]));
    assert(q.code == NULL || (q.rows == rows && q.cols == x.dim[1]));
    fp8_work_run(device, &work);
}

static void fill_decoded(float *tile, const void *from, struct fp8_window w)
{
    for (int64_t r = 0; r < w.rows; r++) {
        fp8_decode_row(tile + r * FP8_TILE, from, w.row + r, w.col, w.cols);
    }
}

void cpu_fp8_transpose(struct device *device, struct fp8_rows t, struct fp8_rows q,
                       const int64_t *offset, int64_t groups, const struct fp8_how *how)
{
    const struct fp8_work work = {.rows = q.rows,
                                  .cols = q.cols,
                                  .t = t,
                                  .offset = offset,
                                  .groups = groups,
                                  .how = how,
                                  .fill = fill_decoded,
                                  .from = &q};
    fp8_work_run(device, &work);
}

void cpu_fp8_pack(struct device *device, uint8_t *packed, struct tensor x, const int32_t *row,
                  int64_t rows, const struct fp8_how *how)
{
    const struct gathered from = {x, row};
    const struct fp8_work work = {.rows = rows,
                                  .cols = x.dim[1],
                                  .out = fp8_out_packed(packed, x.dim[1]),
                                  .row = row,
                                  .how = how,
                                  .fill = fill_gathered,
                                  .from = &from};
    assert(x.dtype == DTYPE_BF16 && (row != NULL || rows <= x.dim[0]));
    fp8_work_run(device, &work);
}

void cpu_fp8_unpack(struct device *device, struct fp8_rows q, const uint8_t *packed, int64_t rows,
                    const int32_t *row)
{
    const int64_t bytes = fp8_packed_bytes(q.cols), tiles = fp8_tiles(q.cols);
    assert(row != NULL || q.rows <= rows);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t r = 0; r < q.rows; r++) {
        const int64_t source = row != NULL ? row[r] : r;
        const uint8_t *in = packed + source * bytes;
        assert(source < rows);
        if (source < 0) {
            memset(q.code + r * q.cols, 0, (size_t)q.cols);
        } else {
            memcpy(q.code + r * q.cols, in, (size_t)q.cols);
        }
        for (int64_t tile = 0; tile < tiles; tile++) {
            float scale = 1.0F;
            if (source >= 0) {
                memcpy(&scale, in + q.cols + tile * (int64_t)sizeof scale, sizeof scale);
            }
            q.scale[tile * q.pitch + r] = scale;
        }
    }
}

/* A tile of one matrix, [rows, cols] of it from (row, col) on. */
struct place {
    int64_t matrix, row, col, rows, cols;
};

static struct place place_of(const struct fp8_weights *w, int64_t task)
{
    const int64_t down = fp8_tiles(w->rows), across = fp8_tiles(w->cols);
    struct place p = {.matrix = task / (down * across),
                      .row = task / across % down * FP8_TILE,
                      .col = task % across * FP8_TILE};
    p.rows = w->rows - p.row < FP8_TILE ? w->rows - p.row : FP8_TILE;
    p.cols = w->cols - p.col < FP8_TILE ? w->cols - p.col : FP8_TILE;
    return p;
}

/* codes [FP8_TILE, FP8_TILE] to their place of w. */
static void store_tile(const struct fp8_weights *w, const struct place *p, const uint8_t *codes,
                       float scale)
{
    uint8_t *out = w->code + (p->matrix * w->rows + p->row) * w->cols + p->col;
    const int64_t tile = (p->matrix * fp8_tiles(w->rows) + p->row / FP8_TILE) * fp8_tiles(w->cols) +
                         p->col / FP8_TILE;
    for (int64_t r = 0; r < p->rows; r++) {
        memcpy(out + r * w->cols, codes + r * FP8_TILE, (size_t)p->cols);
    }
    w->scale[tile] = scale;
}

void cpu_fp8_quantize_weights(struct device *device, struct fp8_weights w, struct fp8_weights t,
                              const void *src, int64_t stride, const struct fp8_how *how)
{
    const int64_t tasks = w.matrices * fp8_tiles(w.rows) * fp8_tiles(w.cols);
    assert(t.code == NULL || (t.matrices == w.matrices && t.rows == w.cols && t.cols == w.rows));
#pragma omp parallel num_threads(device->threads)
    {
        float tile[FP8_TILE * FP8_TILE] __attribute__((aligned(64)));
        uint8_t codes[FP8_TILE * FP8_TILE], turned[FP8_TILE * FP8_TILE];
        struct fp8_counters tally = {0};
#pragma omp for schedule(static)
        for (int64_t task = 0; task < tasks; task++) {
            const struct place p = place_of(&w, task);
            for (int64_t r = 0; r < p.rows; r++) {
                row_load(tile + r * FP8_TILE, src, DTYPE_BF16,
                         p.matrix * stride + (p.row + r) * w.cols + p.col, p.cols);
            }
            const float scale =
                fp8_encode_block(codes, tile, p.rows, p.cols, how->power_of_two, &tally);
            store_tile(&w, &p, codes, scale);
            if (t.code != NULL) {
                const struct place q = {p.matrix, p.col, p.row, p.cols, p.rows};
                fp8_transpose_codes(turned, FP8_TILE, codes, FP8_TILE);
                store_tile(&t, &q, turned, scale);
            }
        }
        fp8_count(how->counters, &tally);
    }
}
