#include <assert.h>
#include <string.h>

#include "kernels/cpu/fp8.h"

/* The engine: tiles of numbers, from wherever they come, to plain and transposed codes. */

enum { FEW_ROWS = 16 }; /* of a tile where no transposed codes are wanted: it stays in L1 */

/* Rows of the work that are a tile's. column: of t. */
struct block {
    int64_t row, rows, column;
};

struct fp8_out fp8_out_rows(struct fp8_rows q)
{
    return (struct fp8_out){.code = q.code,
                            .scale = (char *)q.scale,
                            .code_row = q.cols,
                            .scale_row = sizeof(float),
                            .scale_tile = q.pitch * (int64_t)sizeof(float)};
}

struct fp8_out fp8_out_packed(uint8_t *packed, int64_t cols)
{
    const int64_t bytes = fp8_packed_bytes(cols), scales = fp8_tiles(cols) * (int64_t)sizeof(float);
    return (struct fp8_out){.code = packed,
                            .scale = (char *)packed + cols,
                            .code_row = bytes,
                            .scale_row = bytes,
                            .scale_tile = sizeof(float),
                            .rest = bytes - cols - scales};
}

/* Tile `tile` of row r, of `count` columns; the last one clears the rest of a packed row. */
static void out_tile(const struct fp8_out *out, int64_t r, int64_t tile, const float *x,
                     int64_t count, const struct fp8_how *how, struct fp8_counters *tally)
{
    const float scale = fp8_encode(out->code + r * out->code_row + tile * FP8_TILE, x, count,
                                   how->power_of_two, tally);
    memcpy(out->scale + r * out->scale_row + tile * out->scale_tile, &scale, sizeof scale);
    if (out->rest > 0) {
        memset(out->code + (r + 1) * out->code_row - out->rest, 0, (size_t)out->rest);
    }
}

void fp8_out_row(const struct fp8_out *out, int64_t r, const float *x, int64_t cols,
                 const struct fp8_how *how, struct fp8_counters *tally)
{
    for (int64_t col = 0; col < cols; col += FP8_TILE) {
        const int64_t count = cols - col < FP8_TILE ? cols - col : FP8_TILE;
        out_tile(out, r, col / FP8_TILE, x + col, count, how, tally);
    }
}

int64_t fp8_filled_columns(const int64_t *offset, int64_t groups)
{
    int64_t columns = 0;
    for (int64_t g = 0; g < groups; g++) {
        columns += fp8_tiles(offset[g + 1] - offset[g]) * FP8_TILE;
    }
    return columns;
}

/* Blocks of rows [row, end), `most` rows each, into list (NULL: only counted). */
static int64_t list_rows(struct block *list, int64_t count, int64_t row, int64_t end, int64_t most,
                         int64_t column)
{
    for (; row < end; row += most, column += FP8_TILE) {
        if (list != NULL) {
            list[count] = (struct block){row, end - row < most ? end - row : most, column};
        }
        count++;
    }
    return count;
}

static int64_t list_blocks(struct block *list, const struct fp8_work *w)
{
    const int64_t all[2] = {0, w->rows}, *offset = w->offset != NULL ? w->offset : all;
    const int64_t groups = w->offset != NULL ? w->groups : 1;
    int64_t count = 0, column = 0;
    assert(offset[0] == 0 && offset[groups] <= w->rows);
    if (w->t.code == NULL) {
        return list_rows(list, 0, 0, offset[groups], FEW_ROWS, 0);
    }
    for (int64_t g = 0; g < groups; g++) {
        count = list_rows(list, count, offset[g], offset[g + 1], FP8_TILE, column);
        column += fp8_tiles(offset[g + 1] - offset[g]) * FP8_TILE;
    }
    assert(column <= w->t.cols);
    return count;
}

static int64_t absent_rows(const struct fp8_work *w, const struct block *block)
{
    int64_t absent = 0;
    for (int64_t r = 0; r < block->rows && w->row != NULL; r++) {
        absent += w->row[block->row + r] < 0 ? 1 : 0;
    }
    return absent;
}

/* One tile of rows and columns; tile, codes [FP8_TILE, FP8_TILE] scratch. */
static void run_tile(const struct fp8_work *w, const struct block *block, int64_t index,
                     float *tile, uint8_t *codes, struct fp8_counters *tally)
{
    const int64_t col = index * FP8_TILE,
                  cols = w->cols - col < FP8_TILE ? w->cols - col : FP8_TILE;
    w->fill(tile, w->from, (struct fp8_window){block->row, block->rows, col, cols});
    for (int64_t r = 0; r < block->rows && w->out.code != NULL; r++) {
        out_tile(&w->out, block->row + r, index, tile + r * FP8_TILE, cols, w->how, tally);
    }
    if (w->t.code != NULL) {
        fp8_encode_columns(codes, w->t.scale + block->column / FP8_TILE * w->t.pitch + col, tile,
                           block->rows, cols, w->how->power_of_two,
                           w->out.code == NULL ? tally : NULL);
        memset(codes + block->rows * FP8_TILE, 0, (size_t)((FP8_TILE - block->rows) * FP8_TILE));
        fp8_transpose_codes(w->t.code + col * w->t.cols + block->column, w->t.cols, codes, cols);
    }
    tally->values -= (uint64_t)(absent_rows(w, block) * cols);
}

void fp8_count(struct fp8_counters *all, const struct fp8_counters *tally)
{
#pragma omp critical(fp8_count)
    if (all != NULL) {
        all->values += tally->values;
        all->underflows += tally->underflows;
        all->saturated += tally->saturated;
        all->bad_tiles += tally->bad_tiles;
        all->amax = tally->amax > all->amax ? tally->amax : all->amax;
    }
}

void fp8_work_run(struct device *device, const struct fp8_work *w)
{
    const int64_t blocks = list_blocks(NULL, w), tiles = fp8_tiles(w->cols);
    struct block *list = cpu_scratch(device, CPU_SLOT_OTHER, (size_t)blocks * sizeof *list);
    list_blocks(list, w);
    assert(w->cols % 16 == 0 && (w->t.code == NULL || w->t.rows == w->cols));
#pragma omp parallel num_threads(device->threads)
    {
        float tile[FP8_TILE * FP8_TILE] __attribute__((aligned(64)));
        uint8_t codes[FP8_TILE * FP8_TILE] __attribute__((aligned(64)));
        struct fp8_counters tally = {0};
#pragma omp for schedule(static)
        for (int64_t task = 0; task < blocks * tiles; task++) {
            run_tile(w, &list[task / tiles], task % tiles, tile, codes, &tally);
        }
        fp8_count(w->how->counters, &tally);
    }
}
