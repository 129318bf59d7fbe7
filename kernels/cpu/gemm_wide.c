#include "kernels/cpu/gemm_wide.h"

#include <assert.h>
#include <omp.h>
#include <string.h>

#include "kernels/cpu/share.h"
#include "kernels/cpu/wide_finish.h"
#include "kernels/cpu/wide_pack.h"

/* A word is 32 bits of k: one f32 or a pair of bf16. Register tile: at most ROWS x COLS. A task is
 * TILE_M x WIDE_TILE_N of C, or HIGH_M x WIDE_TILE_N where A is read as it stands, KW words of k at
 * a time: its part of A and B stays in the second cache. */
enum { ROWS = 14, KW = 512, TILE_M = 4 * ROWS, HIGH_M = 8 * ROWS };
/* Words from one widened row of A to the next: rows are not a power of two apart. */
enum { WIDENED_ROW = KW + LANES };
/* Long phases: between them threads wait for one another, and lines that another core has read not
 * long ago are slow to write. */
enum { SLAB_BYTES = 1 << 20, PHASE_BYTES = 16 << 20 };

/* Words of k do not straddle its end where a line is read as it stands. */
static bool even(const struct gemm *g)
{
    return g->k % word_elements(g->way) == 0;
}

bool gemm_wide_takes(const struct gemm *g)
{
    assert(g->packed == NULL || (g->a_col == 1 && even(g)));
    assert(g->exp == NULL || (g->c_dtype == DTYPE_BF16 && !g->add && g->fixed == NULL));
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

/* So few rows that every panel of B is one task's: it packs for itself, as it goes. */
static bool packs_alone(const struct gemm *g)
{
    return !packs_a(g) && g->packed == NULL && g->m <= HIGH_M;
}

/* Columns of a task. So that a row of tokens has tasks for many threads: a panel. */
static int64_t tile_columns(const struct gemm *g)
{
    return packs_alone(g) && g->m <= ROWS && g->exp == NULL ? COLS : WIDE_TILE_N;
}

static int64_t tile_rows(const struct gemm *g)
{
    return packs_a(g) ? TILE_M : HIGH_M;
}

/* Of two dtypes B is widened, whatever the way. */
static struct operand operand_of(const struct gemm *g, bool is_a)
{
    const enum gemm_way way = is_a || g->b_dtype == g->a_dtype ? g->way : GEMM_WIDENED;
    const int64_t element = operand_bytes(way);
    return is_a ? (struct operand){.data = g->a,
                                   .line = g->a_row * element,
                                   .step = g->a_col * element,
                                   .lines = g->m,
                                   .k = g->k,
                                   .way = way}
                : (struct operand){.data = g->b,
                                   .line = g->b_col * element,
                                   .step = g->b_row * element,
                                   .lines = g->n,
                                   .k = g->k,
                                   .way = way};
}

/* --- products --- */

/* What comes into the second cache while a kernel multiplies: every LANES words, so that fills are
 * spread, a line for each of its rows, so many bytes from where it reads A, and B_LINES lines so
 * many from where it reads B. The hardware sees no streams in rows this short. */
struct ahead {
    int64_t a, b;
};
enum { LINE = 64, B_LINES = 4 };

/* Where it points may lie behind the array: nothing is read there. */
static inline void prefetch(const void *from, int64_t bytes)
{
    _mm_prefetch((const char *)((uintptr_t)from + (uintptr_t)bytes), _MM_HINT_T1);
}

/* Where rows of A stand. Bytes from row to row, from word to word, between lines that are
 * prefetched, and to the rows of the task behind this one, which a thread mostly takes next; 0
 * behind the last. */
struct left {
    const char *data;
    int64_t row, step, line, next;
};

/* acc[rows][WIDE_TILE_N] of 32 columns, continued if `more`, over `words` of a and of b's panel. */
WIDE_INLINE static void micro(bool pairs, int rows, float *acc, struct left left, const float *b,
                              int64_t words, bool more, struct ahead ahead)
{
    __m512 sum[ROWS][2];
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++) {
        sum[r][0] = more ? _mm512_loadu_ps(acc + r * WIDE_TILE_N) : _mm512_setzero_ps();
        sum[r][1] = more ? _mm512_loadu_ps(acc + r * WIDE_TILE_N + LANES) : _mm512_setzero_ps();
    }
    const char *a = left.data;
    for (int64_t w = 0; w < words; w++, a += left.step, b += COLS) {
        if (w % LANES == 0) {
#pragma GCC unroll 14
            for (int r = 0; r < rows; r++) {
                prefetch(a, r * left.line + ahead.a);
            }
#pragma GCC unroll 4
            for (int l = 0; l < B_LINES; l++) {
                prefetch(b, l * LINE + ahead.b);
            }
        }
        const __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + LANES);
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++) {
            float word;
            memcpy(&word, a + r * left.row, sizeof word);
            const __m512 both = _mm512_set1_ps(word);
            if (pairs) {
                sum[r][0] = _mm512_dpbf16_ps(sum[r][0], (__m512bh)both, (__m512bh)b0);
                sum[r][1] = _mm512_dpbf16_ps(sum[r][1], (__m512bh)both, (__m512bh)b1);
            } else {
                sum[r][0] = _mm512_fmadd_ps(both, b0, sum[r][0]);
                sum[r][1] = _mm512_fmadd_ps(both, b1, sum[r][1]);
            }
        }
    }
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++) {
        _mm512_storeu_ps(acc + r * WIDE_TILE_N, sum[r][0]);
        _mm512_storeu_ps(acc + r * WIDE_TILE_N + LANES, sum[r][1]);
    }
}

/* Constant distances, for the compiler. */
static inline struct left packed_rows(struct left left)
{
    return (struct left){.data = left.data, .row = WORD, .step = TILE_M * WORD, .line = LINE};
}

static inline struct left plain_rows(struct left left)
{
    return (struct left){.data = left.data, .row = left.row, .step = WORD, .line = left.row};
}

/* One kernel for every number of rows. */
#define CASE(ROWS_HERE)                                                                            \
    case ROWS_HERE:                                                                                \
        micro(pairs, ROWS_HERE, acc, packed ? packed_rows(left) : plain_rows(left), b, words,      \
              more, ahead);                                                                        \
        break

#define KERNEL(NAME, PAIRS)                                                                        \
    WIDE static void NAME(int64_t rows, float *acc, struct left left, const float *b,              \
                          int64_t words, bool more, bool packed, struct ahead ahead)               \
    {                                                                                              \
        const bool pairs = PAIRS;                                                                  \
        switch (rows) {                                                                            \
            CASE(1);                                                                               \
            CASE(2);                                                                               \
            CASE(3);                                                                               \
            CASE(4);                                                                               \
            CASE(5);                                                                               \
            CASE(6);                                                                               \
            CASE(7);                                                                               \
            CASE(8);                                                                               \
            CASE(9);                                                                               \
            CASE(10);                                                                              \
            CASE(11);                                                                              \
            CASE(12);                                                                              \
            CASE(13);                                                                              \
            CASE(14);                                                                              \
        }                                                                                          \
    }
KERNEL(kernel_pairs, true)
KERNEL(kernel_f32, false)
#undef KERNEL
#undef CASE

/* --- slabs --- */

/* A piece of one product: columns [first, first + count), or, where A is packed, rows. Neighbours
 * that are small share a phase: they are packed, and then multiplied, at the same time. */
struct slab {
    const struct gemm *gemm;
    int64_t first, count;
    float *part;          /* packed: B's columns, or A's rows */
    float *whole;         /* where A is packed, all of B */
    float *own;           /* [threads][WIDE_TILE_N][KW] B's of a task, where no other needs it */
    int64_t parts;        /* panels of `part` */
    int64_t packs, tiles; /* panels to pack, those of `whole` too with its first slab; tasks */
    int64_t phase;
};

static void pack_task(const struct slab *slab, int64_t task)
{
    const struct gemm *g = slab->gemm;
    const int64_t words = words_of(g);
    const bool a = packs_a(g) && task < slab->parts;
    const int64_t width = a ? TILE_M : COLS, panel = task < slab->parts ? task : task - slab->parts,
                  first = (task < slab->parts ? slab->first : 0) + panel * width;
    const struct operand from = operand_of(g, a);
    wide_pack_panel((task < slab->parts ? slab->part : slab->whole) + panel * words * width, &from,
                    first, width);
}

/* Rows too short for the hardware to see a stream: those of A, and those of C that sums go to, come
 * before they are asked for. */
static void prefetch_rows(const char *at, int64_t row, int64_t rows, int64_t bytes)
{
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t byte = 0; byte < bytes; byte += LINE) {
            prefetch(at, r * row + byte);
        }
    }
}

/* `rows` of A, `words` of each, as f32: the kernel's next. */
WIDE static struct left widen_rows(float *to, struct left from, int64_t rows, int64_t words)
{
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t w = 0; w < words; w += LANES) {
            const void *at = from.data + r * from.row + w * from.step;
            _mm512_storeu_ps(to + r * WIDENED_ROW + w, wide_load_bf16(at, wide_first(words - w)));
        }
    }
    return (struct left){.data = (const char *)to, .row = WIDENED_ROW * WORD, .step = WORD};
}

/* Words [w, w + words) of B's columns [first, first + n): [n/COLS][words][COLS]. */
static void pack_words(float *out, const struct gemm *g, int64_t first, int64_t n, int64_t w,
                       int64_t words)
{
    const int64_t unit = word_elements(g->way);
    struct operand from = operand_of(g, false);
    from.data += w * unit * from.step;
    from.k = least(words * unit, g->k - w * unit);
    for (int64_t j = 0; j < n; j += COLS) {
        wide_pack_panel(out + j * words, &from, first + j, COLS);
    }
}

/* A task's columns of B: [n/COLS][words][COLS], or where it packs them itself. */
struct right {
    const float *panels; /* NULL: */
    float *own;
    int64_t first;
};

/* Where a kernel stands in a task of m x n: a block of rows [r0, r0 + rows), the first column of a
 * panel, the first word. */
struct place {
    int64_t m, n, block, r0, rows, j, w;
};

/* Rows of A that are widened, which a task reads once. */
static bool widens_a(const struct gemm *g)
{
    return g->way == GEMM_WIDENED && !packs_a(g);
}

/* Beside A's first panel come A's next rows; beside the last panel the first rows of the next words
 * or task; packed, the next task's rows, a part beside every block. B's next panel or words come in
 * parts, too, of which blocks of packed rows are enough for half. */
static struct ahead ahead_of(const struct gemm *g, struct left left, const struct place *at)
{
    const int64_t words = words_of(g), next = at->w + KW;
    const bool last_panel = at->j + COLS >= at->n, last_words = next >= words;
    struct ahead ahead = {0};
    if (packs_a(g)) {
        ahead.a = at->j == 0 && left.next != 0 ? left.next + at->r0 * (LINE - WORD) : 0;
    } else if (widens_a(g)) {
        ahead.a = 0;
    } else if (at->j == 0 && at->r0 + at->rows < at->m) {
        ahead.a = at->rows * left.row;
    } else if (last_panel && at->r0 == 0) {
        ahead.a = !last_words ? KW * left.step : left.next != 0 ? left.next - at->w * left.step : 0;
    }
    if (!packs_alone(g) && !(last_panel && last_words)) {
        ahead.b = (last_panel ? KW - at->j / COLS * words : words) * COLS * WORD +
                  at->block * B_LINES * LINE;
    }
    return ahead;
}

/* Rows that are widened go along all columns first: they stay in the first cache. Others are read
 * again for every panel of B. */
static void multiply(const struct gemm *g, const char *c, float *acc, struct left left,
                     struct right right, int64_t m, int64_t n)
{
    const bool widens = widens_a(g), alone = right.panels == NULL;
    const int64_t words = words_of(g), blocks = up(m, ROWS), panels = up(n, COLS),
                  element = (int64_t)dtype_bytes(g->c_dtype), row = g->c_row * element;
    float widened[ROWS * WIDENED_ROW] __attribute__((aligned(64)));
    for (int64_t w = 0; w < words; w += KW) {
        const int64_t some = least(KW, words - w);
        const float *b = alone ? right.own : right.panels + w * COLS;
        const int64_t pitch = alone ? some : words;
        struct left here = left;
        if (alone) {
            pack_words(right.own, g, right.first, n, w, some);
        }
        for (int64_t step = 0; step < blocks * panels; step++) {
            const int64_t i = widens ? step / panels : step % blocks,
                          j = (widens ? step % panels : step / blocks) * COLS;
            const int64_t r0 = m * i / blocks, rows = m * (i + 1) / blocks - r0;
            const struct place at = {
                .m = m, .n = n, .block = i, .r0 = r0, .rows = rows, .j = j, .w = w};
            if (!widens || j == 0) {
                here = left;
                here.data += r0 * left.row + w * left.step;
                here = widens ? widen_rows(widened, here, rows, some) : here;
            }
            if (w + some == words && c != NULL) {
                prefetch_rows(c + r0 * row + j * element, row, rows, least(COLS, n - j) * element);
            }
            (g->way == GEMM_PAIRS ? kernel_pairs : kernel_f32)(rows, acc + r0 * WIDE_TILE_N + j,
                                                               here, b + j * pitch, some, w > 0,
                                                               packs_a(g), ahead_of(g, left, &at));
        }
    }
}

static void tile_task(const struct slab *slab, int64_t task)
{
    const struct gemm *g = slab->gemm;
    const bool packed = packs_a(g);
    const int64_t words = words_of(g), rows = packed ? slab->count : g->m,
                  cols = packed ? g->n : slab->count, high = tile_rows(g), down = up(rows, high);
    const int64_t wide = tile_columns(g), i = task % down * high, j = task / down * wide;
    const int64_t m = least(rows - i, high), n = least(cols - j, wide);
    const int64_t row = i + (packed ? slab->first : 0), col = j + (packed ? 0 : slab->first);
    const int64_t element = operand_bytes(g->way), word = element * word_elements(g->way),
                  out = (int64_t)dtype_bytes(g->c_dtype);
    struct left left =
        packed ? packed_rows((struct left){.data = (const char *)(slab->part + i * words)})
               : (struct left){.data = (const char *)g->a + row * g->a_row * element,
                               .row = g->a_row * element,
                               .step = word};
    left.next = i + high < rows ? high * (packed ? words * WORD : left.row) : 0;
    float acc[HIGH_M * WIDE_TILE_N] __attribute__((aligned(64)));
    const char *const c = g->exp != NULL ? NULL : (const char *)g->c + (row * g->c_row + col) * out;
    if (!packed) {
        prefetch_rows(left.data, left.row, widens_a(g) ? m : least(m, ROWS),
                      least(words, KW) * word);
    }
    const float *const panels = packed ? slab->whole : g->packed != NULL ? g->packed : slab->part;
    const struct right right = {.panels = packs_alone(g) ? NULL : panels + j * words,
                                .own = slab->own + omp_get_thread_num() * WIDE_TILE_N * KW,
                                .first = col};
    multiply(g, c, acc, left, right, m, n);
    wide_finish_rows(g, row, col, acc, m, n);
}

/* How many lines of the slabbed side make a slab. */
static int64_t slab_lines(const struct gemm *g)
{
    const int64_t unit = packs_a(g) ? TILE_M : WIDE_TILE_N, fit = SLAB_BYTES / WORD / words_of(g);
    return g->packed != NULL || packs_alone(g) ? g->n : fit < unit ? unit : fit / unit * unit;
}

static int64_t slab_side(const struct gemm *g)
{
    return packs_a(g) ? g->m : g->n;
}

/* Floats of a packed slab, and of B packed whole. */
static size_t part_floats(const struct gemm *g)
{
    if (g->packed != NULL || packs_alone(g)) {
        return 0;
    }
    const int64_t unit = packs_a(g) ? TILE_M : COLS;
    return (size_t)(up(least(slab_lines(g), slab_side(g)), unit) * unit * words_of(g));
}

static size_t whole_floats(const struct gemm *g)
{
    return packs_a(g) ? (size_t)(up(g->n, COLS) * COLS * words_of(g)) : 0;
}

static struct slab slab_at(const struct gemm *g, int64_t first)
{
    const int64_t count = least(slab_lines(g), slab_side(g) - first);
    const bool a = packs_a(g);
    struct slab slab = {.gemm = g, .first = first, .count = count};
    slab.parts = g->packed != NULL || packs_alone(g) ? 0 : up(count, a ? TILE_M : COLS);
    slab.packs = slab.parts + (a && first == 0 ? up(g->n, COLS) : 0);
    slab.tiles = a ? up(count, TILE_M) * up(g->n, WIDE_TILE_N)
                   : up(g->m, HIGH_M) * up(count, tile_columns(g));
    return slab;
}

/* A multiple of a cache line. */
static size_t round_floats(size_t floats)
{
    return (floats + LANES - 1) / LANES * LANES;
}

/* All slabs of all products, in order, with their phases; returns how many. Neighbouring phases
 * have different buffers, of PHASE_BYTES or of the largest part; behind them stand B's packed whole
 * and what tasks pack for themselves. */
static int64_t make_slabs(struct device *device, struct slab **out, const struct gemm *batch,
                          int64_t count)
{
    size_t part = 0, whole = 0, own = 0;
    int64_t slabs = 0, phase = 0;
    for (int64_t i = 0; i < count; i++) {
        const size_t floats = round_floats(part_floats(&batch[i]));
        slabs += up(slab_side(&batch[i]), slab_lines(&batch[i]));
        part = floats > part ? floats : part;
        own = packs_alone(&batch[i]) ? (size_t)device->threads * WIDE_TILE_N * KW : own;
        whole += round_floats(whole_floats(&batch[i]));
    }
    const size_t room = part > PHASE_BYTES / WORD ? part : PHASE_BYTES / WORD;
    float *memory = cpu_scratch(device, CPU_SLOT_GEMM, (2 * room + whole + own) * sizeof *memory),
          *next_whole = memory + 2 * room;
    struct slab *slab = cpu_scratch(device, CPU_SLOT_SLAB, (size_t)slabs * sizeof *slab);
    size_t used = 0;
    *out = slab;
    for (int64_t i = 0; i < count; i++) {
        const struct gemm *g = &batch[i];
        const size_t floats = round_floats(part_floats(g));
        for (int64_t first = 0; first < slab_side(g); first += slab_lines(g)) {
            if (used + floats > room) {
                used = 0;
                phase++;
            }
            *slab = slab_at(g, first);
            slab->phase = phase;
            slab->part = memory + (phase % 2 != 0 ? room : 0) + used;
            slab->whole = next_whole;
            slab->own = memory + 2 * room + whole;
            used += floats;
            slab++;
        }
        next_whole += round_floats(whole_floats(g));
    }
    return slabs;
}

/* Slabs [first, end) of a phase. */
struct phase {
    int64_t first, end, packs, tiles;
};

static struct phase phase_at(const struct slab *slab, int64_t slabs, int64_t first)
{
    struct phase phase = {.first = first, .end = first};
    for (; phase.end < slabs && slab[phase.end].phase == slab[first].phase; phase.end++) {
        phase.packs += slab[phase.end].packs;
        phase.tiles += slab[phase.end].tiles;
    }
    return phase;
}

/* Of the phase's packs the first that the tasks from the one numbered `tile` on need. */
static int64_t first_pack(const struct slab *slab, const struct phase *phase, int64_t tile)
{
    int64_t packs = 0;
    for (int64_t i = phase->first; i < phase->end; i++) {
        if (tile < slab[i].tiles) {
            return packs + up(tile * slab[i].packs, slab[i].tiles);
        }
        tile -= slab[i].tiles;
        packs += slab[i].packs;
    }
    return packs;
}

/* In a turn a phase is multiplied, and before it the next packed, mostly by the thread whose tasks
 * will read it. Past the barrier all have set their shares of this turn, and left those of the turn
 * before, which the next turn sets: so there are two sets. */
static void run_phases(const struct slab *slab, int64_t slabs, struct share *shares)
{
    const int threads = omp_get_num_threads(), self = omp_get_thread_num();
    struct phase now = {0}, next = phase_at(slab, slabs, 0);
    for (int turn = 0; now.tiles + next.tiles > 0; turn++) {
        struct share *packs = shares + (turn % 2) * 2 * threads, *tiles = packs + threads;
        packs[self].next = first_pack(slab, &next, next.tiles * self / threads);
        packs[self].end = first_pack(slab, &next, next.tiles * (self + 1) / threads);
        tiles[self] = share_even(now.tiles, threads, self);
#pragma omp barrier
        int64_t task;
        while ((task = share_take(packs, threads, self)) >= 0) {
            const struct slab *at = slab + next.first;
            for (; task >= at->packs; at++) {
                task -= at->packs;
            }
            pack_task(at, task);
        }
        while ((task = share_take(tiles, threads, self)) >= 0) {
            const struct slab *at = slab + now.first;
            for (; task >= at->tiles; at++) {
                task -= at->tiles;
            }
            tile_task(at, task);
        }
        now = next;
        next = phase_at(slab, slabs, now.end);
    }
}

size_t gemm_wide_packed_floats(const struct gemm *gemm)
{
    return packs_a(gemm) ? 0 : (size_t)(up(gemm->n, COLS) * COLS * words_of(gemm));
}

void gemm_wide_pack(struct device *device, float *out, const struct gemm *gemm)
{
    const struct operand from = operand_of(gemm, false);
    const int64_t panels = up(gemm->n, COLS), words = words_of(gemm);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t panel = 0; panel < panels; panel++) {
        wide_pack_panel(out + panel * words * COLS, &from, panel * COLS, COLS);
    }
}

void gemm_wide_run(struct device *device, const struct gemm *batch, int64_t count)
{
    struct slab *slab;
    const int64_t slabs = make_slabs(device, &slab, batch, count);
    struct share *shares =
        cpu_scratch(device, CPU_SLOT_SHARE, 4 * (size_t)device->threads * sizeof *shares);
#pragma omp parallel num_threads(device->threads)
    run_phases(slab, slabs, shares);
}
#else
size_t gemm_wide_packed_floats(const struct gemm *gemm)
{
    (void)gemm;
    return 0;
}

void gemm_wide_pack(struct device *device, float *out, const struct gemm *gemm)
{
    (void)device, (void)out, (void)gemm;
    assert(false);
}

void gemm_wide_run(struct device *device, const struct gemm *batch, int64_t count)
{
    (void)device, (void)batch, (void)count;
    assert(false);
}
#endif
