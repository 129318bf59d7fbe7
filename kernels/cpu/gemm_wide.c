#include "kernels/cpu/gemm_wide.h"

#include <assert.h>
#include <omp.h>
#include <string.h>

#include "kernels/cpu/share.h"
#include "kernels/cpu/wide_finish.h"
#include "kernels/cpu/wide_kernel.h"
#include "kernels/cpu/wide_pack.h"

/* A word is 32 bits of k: one f32 or a pair of bf16. Sums of TILE_M x WIDE_TILE_N of C are made at
 * a time, or of HIGH_M x WIDE_TILE_N where A is read as it stands, of KW words of k, a slice: its
 * part of A and B stays in the second cache. */
enum { KW = 512, TILE_M = BLOCKS * WIDE_ROWS, HIGH_M = 8 * WIDE_ROWS };
/* Words from one copied row of A to the next; rows of A that lie so many bytes apart, or a multiple
 * of that, are in the way of one another: the first cache has no room for all in the same place. */
enum { COPIED_ROW = KW + LANES, BAD_ROW = 4096 };
/* Tasks of a thread, in all; bytes of B that one packs, in the second cache, but WIDE_TILE_N
 * columns at least. Where A is packed, again for each part of B, parts are larger, in the last
 * cache, and so are tasks that would have fewer columns: at most so many times. */
enum { TASKS = 16, NEAR_BYTES = 256 << 10, FAR_BYTES = 2 << 20, FAR_COLUMNS = 2 * WIDE_TILE_N };
enum { PACKED_WORK = 8 };
/* Floats of a word of a packed tile of A. */
enum { PACKED_A = BLOCKS * LANES };
/* Rows of a band at least: threads share long products by rows, as what made A's and what reads C's
 * do. */
enum { BAND_ROWS = 2048 };
/* A task of a deep product has so many rows, columns, sums, and floats of A that it packs at most.
 */
enum { DEEP_ROWS = 512, DEEP_COLUMNS = 4096, DEEP_SUMS = 256 << 10 };
enum { DEEP_A = (DEEP_ROWS + TILE_M - 1) / TILE_M * PACKED_A * KW };
/* Products of more words are deep, gradients of weights with at most so many rows; packing a word
 * takes as long as multiplying it by so many others. */
enum { DEEP_WORDS = 4096, DEEP_M = 4096, DEEP_PACKED = 20 };

/* Words of k do not straddle its end where a line is read as it stands. */
static bool even(const struct gemm *g)
{
    return g->k % word_elements(g->way) == 0;
}

bool gemm_wide_takes(const struct gemm *g)
{
    assert(g->exp == NULL || (!g->add && g->fixed == NULL));
    assert(!g->past || !g->add);
    const bool mixed = g->a_dtype == DTYPE_F32 && g->b_dtype == DTYPE_BF16;
    return (g->a_dtype == g->b_dtype || mixed) && g->k > 0 &&
           (g->a_row == 1 || (g->a_col == 1 && even(g))) &&
           (g->b_col == 1 || (g->b_row == 1 && even(g)));
}

#ifdef __x86_64__
static int64_t up(int64_t value, int64_t unit)
{
    return (value + unit - 1) / unit;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t words_of(const struct gemm *g)
{
    return up(g->k, word_elements(g->way));
}

/* A's rows are not read as they stand. */
static bool packs_a(const struct gemm *g)
{
    return g->a_col != 1 || !even(g);
}

/* Tiles are of even height: the last is not left with a few. */
static int64_t tile_rows(const struct gemm *g)
{
    return up(g->m, up(g->m, packs_a(g) ? TILE_M : HIGH_M));
}

/* Of two dtypes B is widened, whatever the way. */
static struct operand operand_of(const struct gemm *g, bool is_a)
{
    const enum gemm_way way = is_a || g->b_dtype == g->a_dtype ? g->way : GEMM_WIDENED;
    const int64_t element = operand_bytes(way);
    return is_a ? (struct operand){.data = g->a,
                                   .line = g->a_row * element,
                                   .step = g->a_col * element,
                                   .k = g->k,
                                   .way = way}
                : (struct operand){.data = g->b,
                                   .line = g->b_col * element,
                                   .step = g->b_row * element,
                                   .k = g->k,
                                   .way = way};
}

/* --- what is needed next --- */

/* Rows of C that sums go to come before they are asked for. */
WIDE_INLINE static void prefetch_rows(const char *at, int64_t row, int64_t rows, int64_t bytes)
{
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t byte = 0; byte < bytes; byte += LINE) {
            wide_prefetch_write(at, r * row + byte);
        }
    }
}

/* What a thread packs next: `rows` of so many bytes, `row` from one to the next. Kernels prefetch
 * it as they go, those before `done` so far, and of the others what is before the byte `from`. */
struct source {
    const char *data;
    int64_t row, rows, bytes, done, from;
    bool twice; /* many lines a step: there are few steps until then */
};
enum { SOURCE_BYTES = 512 << 10 }; /* more would be gone before it is packed */
enum { FEW_ROWS = HIGH_M };        /* of A: a tile, which is multiplied soon */

/* Lines [first, first + width) of A or B, as far as there are. */
static struct source source_of(const struct gemm *g, bool is_a, int64_t first, int64_t width)
{
    const struct operand all = operand_of(g, is_a);
    const int64_t element = operand_bytes(all.way),
                  lines = least(width, (is_a ? g->m : g->n) - first);
    struct source source = {.data = all.data + first * all.line};
    if (all.line == element) {
        source.row = all.step;
        source.rows = all.k;
        source.bytes = lines * element;
    } else {
        source.row = all.line;
        source.rows = lines;
        source.bytes = all.k * element;
    }
    return source;
}

/* The part of it that a kernel takes which multiplies so many words. */
static void take_source(struct source *source, int64_t words, struct wide_ahead *ahead)
{
    if (source->done >= source->rows || source->rows * source->bytes > SOURCE_BYTES) {
        return;
    }
    ahead->next = source->data + source->done * source->row + source->from;
    ahead->step = source->row;
    ahead->twice = source->twice;
    source->from += WIDE_NEXT_LINES * LINE * (source->twice ? 2 : 1);
    if (source->from >= source->bytes) {
        source->from = 0;
        source->done += up(words, LANES);
    }
}

/* --- a tile of C --- */

/* m rows by n columns, at most tile_rows by WIDE_TILE_N. */
struct tile {
    const struct gemm *gemm;
    struct wide_left left;
    const float *panels; /* B: [n / COLS][words][COLS] */
    char *c;             /* NULL: what is there need not be at hand */
    bool puts;           /* sums go to c; else they stay in acc */
    int64_t m, n;
    int64_t next; /* bytes from its rows of A to those multiplied next, or 0 */
};

/* Where a kernel stands in it: rows [r0, r0 + rows), the first column of a panel, the first word.
 */
struct place {
    int64_t r0, rows, j, w;
};

/* Rows of A are copied, a few at a time, before they are multiplied: where they are widened, and
 * where they stand badly. */
static bool copies_a(const struct gemm *g)
{
    return !packs_a(g) &&
           (g->way == GEMM_WIDENED || g->a_row * operand_bytes(g->way) % BAD_ROW == 0);
}

/* `rows` of A, `words` of each, as the kernel reads them; those so many bytes behind come to be at
 * hand. */
WIDE static struct wide_left copy_rows(float *to, struct wide_left from, bool widened, int64_t rows,
                                       int64_t words, int64_t behind)
{
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t w = 0; w < words; w += LANES) {
            const char *at = from.data + r * from.row + w * from.step;
            const __mmask16 some = wide_first(words - w);
            _mm512_storeu_ps(to + r * COPIED_ROW + w, widened
                                                          ? wide_load_bf16((const void *)at, some)
                                                          : _mm512_maskz_loadu_ps(some, at));
            wide_prefetch(at, behind);
        }
    }
    return (struct wide_left){.data = (const char *)to, .row = COPIED_ROW * WORD, .step = WORD};
}

/* Bytes from A's rows of the last panel's first kernel, or of the last that are copied, to those
 * behind them: of the next words, or of the next tile. 0: none. */
static int64_t rows_behind(const struct tile *tile, const struct place *at)
{
    const int64_t w = at->w, step = tile->left.step;
    return w + KW < words_of(tile->gemm) ? KW * step - at->r0 * tile->left.row
           : tile->next != 0             ? tile->next - w * step - at->r0 * tile->left.row
                                         : 0;
}

/* Beside A's first panel come A's next rows; beside the last those behind. */
static struct wide_ahead ahead_of(const struct tile *tile, const struct place *at, const float *b)
{
    const struct gemm *g = tile->gemm;
    struct wide_ahead ahead = {.next = (const char *)b};
    if (packs_a(g) || copies_a(g)) {
        return ahead;
    }
    if (at->j == 0 && at->r0 + at->rows < tile->m) {
        ahead.a = at->rows * tile->left.row;
    } else if (at->j + COLS >= tile->n && at->r0 == 0) {
        ahead.a = rows_behind(tile, at);
    }
    return ahead;
}

/* Rows that are copied go along all columns first: they stay in the first cache. Others are read
 * again for every panel of B. */
WIDE static void multiply(const struct tile *tile, float *acc, struct source *source)
{
    const struct gemm *g = tile->gemm;
    const bool copies = copies_a(g), widened = g->way == GEMM_WIDENED;
    const int64_t words = words_of(g), blocks = up(tile->m, WIDE_ROWS), panels = up(tile->n, COLS),
                  turn = copies ? panels : blocks, element = (int64_t)dtype_bytes(g->c_dtype),
                  row = g->c_row * element;
    float copied[WIDE_ROWS * COPIED_ROW] __attribute__((aligned(64)));
    const bool packed = packs_a(g);
    int64_t first[HIGH_M / WIDE_ROWS + 1]; /* rows of blocks: no division where sums are short */
    for (int64_t i = 0; i <= blocks; i++) {
        first[i] = block_begin(tile->m, blocks, i);
    }
    for (int64_t w = 0; w < words; w += KW) {
        const int64_t some = least(KW, words - w);
        struct wide_left here = tile->left;
        int64_t i = 0, panel = 0;
        int64_t *const inner = copies ? &panel : &i, *const outer = copies ? &i : &panel;
        for (int64_t step = 0; step < blocks * panels; step++) {
            const int64_t j = panel * COLS, r0 = first[i], rows = first[i + 1] - r0;
            const struct place at = {.r0 = r0, .rows = rows, .j = j, .w = w};
            const float *b = tile->panels + j * words + w * COLS;
            struct wide_ahead ahead = ahead_of(tile, &at, b);
            take_source(source, some, &ahead);
            if (!copies || j == 0) {
                here = tile->left;
                here.data += w * here.step + (packed ? i * words * here.step : r0 * here.row);
            }
            if (copies && j == 0) {
                here =
                    copy_rows(copied, here, widened, rows, some,
                              r0 + rows < tile->m ? rows * tile->left.row : rows_behind(tile, &at));
            }
            struct wide_sums to = {.acc = acc + r0 * WIDE_TILE_N + j,
                                   .more = w > 0,
                                   .row = row,
                                   .columns = least(COLS, tile->n - j),
                                   .gemm = g};
            char *const c = tile->c == NULL ? NULL : tile->c + r0 * row + j * element;
            if (w + some == words && c != NULL && !g->past) {
                prefetch_rows(c, row, rows, to.columns * element);
            }
            to.c = w + some == words && tile->puts ? c : NULL;
            wide_kernel(rows, &to, here, b, some, ahead);
            *inner = *inner + 1 < turn ? *inner + 1 : 0;
            *outer += *inner == 0 ? 1 : 0;
        }
    }
}

/* --- tasks --- */

/* A product of a batch, of which so many rows by so many columns are a task. Tasks of the same
 * columns are neighbours: a thread mostly takes them one after another, and packs B's columns once
 * for all. */
struct product {
    const struct gemm *gemm;
    bool deep;
    int64_t rows, columns, band; /* band: rows that go through together, all columns of them */
    int64_t down, across;        /* tasks of a band: of the same columns, of the same rows */
    int64_t first, end;          /* tasks, in the order of the batch */
};

/* A thread's own panels, which nobody else reads. */
struct worker {
    float *a, *b;                  /* [BLOCKS][words][LANES], deep: [tiles][BLOCKS][KW][LANES];
                                      [columns / COLS][words][COLS] */
    float *sums;                   /* deep: [columns / WIDE_TILE_N][rows][WIDE_TILE_N] */
    const struct product *product; /* b: of this one's columns from `col` on */
    int64_t col;
    struct source source;
};

/* Columns [col, col + n) of B. What follows are the next ones, or the next product's, unless A's
 * rows are packed, which kernels then prefetch. */
static void pack_columns(struct worker *self, const struct product *product, int64_t col, int64_t n,
                         const struct product *next)
{
    const struct gemm *g = product->gemm;
    const struct operand from = operand_of(g, false);
    wide_pack_columns(self->b, &from, col, n);
    self->product = product;
    self->col = col;
    self->source = (struct source){0};
    if (col + n < g->n) {
        self->source = source_of(g, false, col + n, product->columns);
    } else if (next != NULL) {
        self->source = source_of(next->gemm, false, 0, next->columns);
    }
    self->source.twice = g->m <= FEW_ROWS;
}

/* Rows [row, row + m) of A where the kernel reads them. */
static struct wide_left left_of(const struct gemm *g, struct worker *self, int64_t row, int64_t m)
{
    const int64_t element = operand_bytes(g->way);
    if (!packs_a(g)) {
        return (struct wide_left){.data = (const char *)g->a + row * g->a_row * element,
                                  .row = g->a_row * element,
                                  .step = element * word_elements(g->way)};
    }
    const struct operand from = operand_of(g, true);
    wide_pack_blocks(self->a, &from, row, m, up(m, WIDE_ROWS));
    self->source = row + m < g->m ? source_of(g, true, row + m, m) : (struct source){0};
    return (struct wide_left){.data = (const char *)self->a, .row = WORD, .step = LINE};
}

/* C's rows [row, row + m), in the n columns that the thread has packed. */
static void run_rows(struct worker *self, int64_t row, int64_t m, int64_t n, bool last)
{
    const struct gemm *g = self->product->gemm;
    const int64_t words = words_of(g), out = (int64_t)dtype_bytes(g->c_dtype);
    float acc[HIGH_M * WIDE_TILE_N] __attribute__((aligned(64)));
    struct tile tile = {.gemm = g,
                        .left = left_of(g, self, row, m),
                        .puts = g->fixed == NULL && g->exp == NULL,
                        .m = m};
    for (int64_t j = 0; j < n; j += WIDE_TILE_N) {
        const int64_t col = self->col + j;
        tile.panels = self->b + j * words;
        tile.c = g->exp == NULL ? (char *)g->c + (row * g->c_row + col) * out : NULL;
        tile.n = least(WIDE_TILE_N, n - j);
        tile.next = last || j + tile.n < n ? 0 : m * tile.left.row;
        multiply(&tile, acc, &self->source);
        if (!tile.puts) {
            wide_finish_rows(g, row, col, acc, m, tile.n);
        }
    }
}

/* --- deep products: every column and row of a task's slice, then the next slice --- */

/* Words [w, w + KW) of a product, whose sums are added to those of the words before. */
static struct gemm slice_of(const struct gemm *g, int64_t w, float *sums)
{
    const int64_t first = w * word_elements(g->way);
    struct gemm slice = *g;
    slice.a = (const char *)g->a + first * g->a_col * (int64_t)dtype_bytes(g->a_dtype);
    slice.b = (const char *)g->b + first * g->b_row * (int64_t)dtype_bytes(g->b_dtype);
    slice.k = least(KW * word_elements(g->way), g->k - first);
    slice.c = sums;
    slice.c_row = WIDE_TILE_N;
    slice.c_dtype = DTYPE_F32;
    slice.add = w > 0;
    slice.past = false;
    slice.fixed = NULL;
    slice.exp = NULL;
    return slice;
}

/* A part of a deep product: rows by columns of C. */
struct part {
    const struct gemm *gemm;
    int64_t row, rows, col, columns;
};

/* Columns that are packed after those from `j` on, of the slice from w on. */
static struct source columns_after(const struct part *part, int64_t w, int64_t j)
{
    const bool same = j + WIDE_TILE_N < part->columns;
    struct source none = {0};
    if (!same && w + KW >= words_of(part->gemm)) {
        return none;
    }
    const struct gemm slice = slice_of(part->gemm, same ? w : w + KW, NULL);
    return source_of(&slice, false, part->col + (same ? j + WIDE_TILE_N : 0), WIDE_TILE_N);
}

/* A slice of the part's rows by WIDE_TILE_N of its columns. A's packed rows stay for the others. */
static void run_slice(struct worker *self, const struct part *part, int64_t w, int64_t j)
{
    const struct gemm slice = slice_of(part->gemm, w, self->sums + j * part->rows);
    const struct operand a = operand_of(&slice, true), b = operand_of(&slice, false);
    const bool packs = packs_a(&slice), fills = packs && j == 0;
    const int64_t tiles = up(part->rows, packs ? TILE_M : HIGH_M);
    struct tile tile = {.gemm = &slice,
                        .panels = self->b,
                        .puts = true,
                        .n = least(WIDE_TILE_N, part->columns - j)};
    wide_pack_columns(self->b, &b, part->col + j, tile.n);
    self->source = columns_after(part, w, j);
    for (int64_t i = 0; i < tiles; i++) {
        const int64_t r0 = part->rows * i / tiles, row = part->row + r0;
        float *const packed = self->a + i * KW * PACKED_A;
        tile.m = part->rows * (i + 1) / tiles - r0;
        if (fills) {
            wide_pack_blocks(packed, &a, row, tile.m, up(tile.m, WIDE_ROWS));
            self->source = i + 1 < tiles ? source_of(&slice, true, row + tile.m, TILE_M)
                                         : columns_after(part, w, j);
        }
        tile.left = packs ? (struct wide_left){(const char *)packed, WORD, LINE}
                          : (struct wide_left){a.data + row * a.line, a.line,
                                               a.step * word_elements(slice.way)};
        tile.next = i + 1 < tiles ? tile.m * tile.left.row : 0;
        tile.c = (char *)slice.c + r0 * WIDE_TILE_N * (int64_t)sizeof(float);
        multiply(&tile, self->sums, &self->source);
    }
}

static void run_deep(struct worker *self, const struct part *part)
{
    for (int64_t w = 0; w < words_of(part->gemm); w += KW) {
        for (int64_t j = 0; j < part->columns; j += WIDE_TILE_N) {
            run_slice(self, part, w, j);
        }
    }
    for (int64_t j = 0; j < part->columns; j += WIDE_TILE_N) {
        wide_finish_rows(part->gemm, part->row, part->col + j, self->sums + j * part->rows,
                         part->rows, least(WIDE_TILE_N, part->columns - j));
    }
    self->product = NULL; /* it has packed others' columns */
}

static void run_task(struct worker *self, const struct product *product, int64_t task,
                     const struct product *next)
{
    const struct gemm *g = product->gemm;
    const int64_t high = tile_rows(g), down = product->down, band = task / (down * product->across),
                  col = task / down % product->across * product->columns,
                  row = band * product->band + task % down * product->rows,
                  end = least(least(g->m, (band + 1) * product->band), row + product->rows),
                  n = least(g->n - col, product->columns);
    if (row >= end) {
        return; /* the last band has fewer rows */
    }
    if (product->deep) {
        run_deep(self, &(struct part){g, row, end - row, col, n});
    } else if (self->product != product || self->col != col) {
        pack_columns(self, product, col, n, next);
    }
    for (int64_t i = row; i < end && !product->deep; i += high) {
        run_rows(self, i, least(high, end - i), n, i + high >= end);
    }
    if (g->exp != NULL || g->past) {
        _mm_sfence(); /* what went past the caches, before another thread reads it */
    }
}

/* Bands of rows that a product has for so many threads. Experts, of which every thread has its own,
 * have one; so has what packs A, whose columns all tasks read. */
static int64_t bands_of(const struct gemm *g, int threads)
{
    const int64_t bands = g->varies || packs_a(g) ? 1 : least(threads, g->m / BAND_ROWS);
    return bands > 1 ? bands : 1;
}

/* Of sums over more than a slice: gradients of weights that are not far longer than wide, whose
 * columns of B would be read from the last cache; others of which not even a tile's columns have
 * room for the whole k. Not experts, of which each has its own k: threads have more than one. */
static bool is_deep(const struct gemm *g)
{
    const int64_t words = words_of(g);
    return !g->varies &&
           (g->a_col != 1 ? words > KW && g->m <= DEEP_M : words > DEEP_WORDS && even(g));
}

/* Tasks that take so many threads the least time. */
static struct product deep_product(const struct gemm *g, int64_t first, int threads)
{
    struct product best = {.gemm = g, .deep = true, .first = first, .band = g->m};
    int64_t shortest = INT64_MAX;
    for (int64_t across = up(g->n, DEEP_COLUMNS); across <= up(g->n, WIDE_TILE_N); across++) {
        const int64_t columns = up(up(g->n, across), WIDE_TILE_N) * WIDE_TILE_N,
                      most = least(DEEP_ROWS, DEEP_SUMS / columns), few = up(g->m, most),
                      wanted = up(threads, across), down = wanted > few ? wanted : few,
                      rows = up(g->m, down),
                      turns = up(up(g->m, rows) * up(g->n, columns), threads),
                      time = turns * (rows * columns + DEEP_PACKED * (rows + columns));
        if (time < shortest) {
            shortest = time;
            best.columns = columns;
            best.across = up(g->n, columns);
            best.rows = rows;
            best.down = up(g->m, rows);
        }
    }
    best.end = first + best.down * best.across;
    return best;
}

/* Tasks of at most `work` multiply-adds, but a tile of a panel at least. */
static struct product product_of(const struct gemm *g, int64_t first, int64_t work, int threads)
{
    if (is_deep(g)) {
        return deep_product(g, first, threads);
    }
    const int64_t high = tile_rows(g), unit = g->exp != NULL ? WIDE_TILE_N : COLS,
                  least_fit = packs_a(g) ? FAR_COLUMNS : WIDE_TILE_N,
                  fit = (packs_a(g) ? FAR_BYTES : NEAR_BYTES) / WORD / words_of(g),
                  few = work * (packs_a(g) ? PACKED_WORK : 1) / (high * g->k),
                  most = least(fit > least_fit ? fit : least_fit, few),
                  parts = up(g->n, most > unit ? most : unit),
                  columns = up(up(g->n, parts), unit) * unit, fit_rows = work / (columns * g->k),
                  rows = fit_rows > high ? fit_rows / high * high : high,
                  bands = bands_of(g, threads), band = up(up(g->m, high), bands) * high;
    struct product product = {.gemm = g,
                              .rows = rows,
                              .columns = columns,
                              .band = band,
                              .down = up(band, rows),
                              .across = up(g->n, columns),
                              .first = first};
    product.end = first + bands * product.down * product.across;
    return product;
}

/* Floats of a thread's panels of A and of B, whole cache lines. As many at least as mostly are
 * enough: what follows the routing would grow in one step or another; what is not used is not
 * touched. */
struct room {
    size_t a, b;
};

static size_t larger(size_t floats, int64_t wanted)
{
    const size_t lines = (size_t)(up(wanted, LANES) * LANES);
    return lines > floats ? lines : floats;
}

static struct room make_products(struct product *products, const struct gemm *batch, int64_t count,
                                 int threads)
{
    struct room room = {.a = DEEP_A, .b = FAR_BYTES / WORD};
    double work = 0;
    for (int64_t i = 0; i < count; i++) {
        work += (double)batch[i].m * (double)batch[i].n * (double)batch[i].k;
    }
    for (int64_t i = 0, tasks = 0; i < count; tasks = products[i++].end) {
        const struct gemm *g = &batch[i];
        const struct product *p = &products[i];
        products[i] = product_of(g, tasks, (int64_t)(work / (TASKS * threads)), threads);
        if (p->deep) {
            continue;
        }
        room.a = larger(room.a, packs_a(g) ? PACKED_A * words_of(g) : 0);
        room.b = larger(room.b, up(least(p->columns, g->n), COLS) * COLS * words_of(g));
    }
    return room;
}

void gemm_wide_run(struct device *device, const struct gemm *batch, int64_t count)
{
    const int threads = device->threads;
    struct product *products =
        cpu_scratch(device, CPU_SLOT_PRODUCTS, (size_t)count * sizeof *products);
    struct share *shares = cpu_scratch(device, CPU_SLOT_SHARE, (size_t)threads * sizeof *shares);
    const struct room room = make_products(products, batch, count, threads);
    const size_t floats = room.a + room.b + DEEP_SUMS;
    float *panels = cpu_scratch(device, CPU_SLOT_GEMM, (size_t)threads * floats * sizeof *panels);
#pragma omp parallel num_threads(threads)
    {
        const int id = omp_get_thread_num(), team = omp_get_num_threads();
        struct worker self = {.a = panels + (size_t)id * floats};
        self.b = self.a + room.a;
        self.sums = self.b + room.b;
        shares[id] = share_even(products[count - 1].end, team, id);
#pragma omp barrier
        int64_t task, i = 0;
        while ((task = share_take(shares, team, id)) >= 0) {
            for (i = task < products[i].first ? 0 : i; task >= products[i].end; i++) {
            }
            run_task(&self, &products[i], task - products[i].first,
                     i + 1 < count ? &products[i + 1] : NULL);
        }
    }
}
#else
void gemm_wide_run(struct device *device, const struct gemm *batch, int64_t count)
{
    (void)device, (void)batch, (void)count;
    assert(false);
}
#endif
