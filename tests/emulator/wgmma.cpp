#include "emulator/block.h"

#include <cuda_fp8.h>
#include <math.h>

enum { OPS_MAX = 64, ACCUMULATORS_MAX = 4, COLUMNS_MAX = 256, ROWS = 64 };
enum { COMMIT = -1 };
enum { REGISTERS = 65536 /* of a multiprocessor */, REGISTERS_LEAST = 24 /* of setmaxnreg */ };
enum { SWIZZLE_NONE, SWIZZLE_128B, SWIZZLE_64B, SWIZZLE_32B };

/* One wgmma as one thread issued it. The 128 threads' queues must be equal but for d. */
struct op {
    int accumulator, columns;
    bool fp8, a_mn_major, b_mn_major, accumulate;
    uint64_t a, b; /* descriptors */
    int group;
    struct emu_at at;
};
/* From issue to completion the registers are NaN and their values are kept here. */
struct accumulator {
    float *d;         /* NULL: free */
    int count, group; /* group: of the newest op that uses it */
    float value[COLUMNS_MAX / 2];
};
struct queue {
    struct op ops[OPS_MAX], done[OPS_MAX];
    int count, committed, done_count;
    bool fenced;
    struct accumulator accumulators[ACCUMULATORS_MAX];
};
static struct queue queues[EMU_THREADS_MAX];
static bool hopper_fp8;
static bool used; /* by the block: any queue is not as wgmma_begin() leaves it */
static int registers[EMU_THREADS_MAX / 128]; /* that a warpgroup asked for; 0: it has not yet */

void emu_set_hopper_fp8(bool on)
{
    hopper_fp8 = on;
}

void wgmma_begin()
{
    for (int &count : registers)
        count = 0;
    for (int i = 0; i < EMU_THREADS_MAX && used; i++) {
        struct queue *q = &queues[i];
        q->count = q->committed = q->done_count = 0;
        q->fenced = false;
        for (struct accumulator &a : q->accumulators)
            a.d = nullptr;
    }
    used = false;
}

void wgmma_end(struct emu_at kernel)
{
    for (int i = 0; i < block_threads() && used; i++)
        for (const struct accumulator &a : queues[i].accumulators)
            if (a.d)
                emu_fail(kernel, "thread %d returned with wgmma not waited for", i);
}

/* ---- operands ---- */

/* Shared address of 16 bytes of an operand: row mn (or 8 columns from mn on), byte of k. */
static uint32_t chunk_address(uint64_t desc, bool mn_major, int mn, int k, int k_byte)
{
    uint32_t base = (uint32_t)(desc & 0x3FFF) << 4, leading = (uint32_t)(desc >> 16 & 0x3FFF) << 4,
             stride = (uint32_t)(desc >> 32 & 0x3FFF) << 4, m = (uint32_t)mn;
    if (mn_major) {
        uint32_t address =
            base + m / 64 * leading + m % 64 * 2 + (uint32_t)k / 8 * stride + (uint32_t)k % 8 * 128;
        return address ^ (address >> 7 & 7) << 4;
    }
    switch (desc >> 62) {
    case SWIZZLE_128B: {
        uint32_t address = base + m / 8 * stride + m % 8 * 128 + (uint32_t)k_byte;
        return address ^ (address >> 7 & 7) << 4;
    }
    case SWIZZLE_64B: {
        uint32_t address = base + m / 8 * stride + m % 8 * 64 + (uint32_t)k_byte;
        return address ^ (address >> 7 & 3) << 4;
    }
    case SWIZZLE_32B: {
        uint32_t address = base + m / 8 * stride + m % 8 * 32 + (uint32_t)k_byte;
        return address ^ (address >> 7 & 1) << 4;
    }
    default:
        return base + m / 8 * stride + m % 8 * 16 + (uint32_t)k_byte / 16 * leading;
    }
}

static void descriptor_check(uint64_t desc, bool mn_major, struct emu_at at)
{
    uint32_t base = (uint32_t)(desc & 0x3FFF) << 4, repeat[] = {16, 1024, 512, 256};
    int swizzle = (int)(desc >> 62);
    if (mn_major && swizzle != SWIZZLE_128B)
        emu_fail(at, "wgmma: MN-major operands are modelled with 128-byte swizzle only");
    /* The base offset field stays 0, so a tile starts where the swizzle pattern does; k may advance
     * inside the pattern's first row. */
    if (swizzle != SWIZZLE_NONE &&
        base % repeat[swizzle] >= (mn_major ? 1024u : repeat[swizzle] / 8))
        emu_fail(at, "wgmma: descriptor at %u starts inside a swizzle pattern of %u bytes", base,
                 repeat[swizzle]);
}

static float table[256];

static void fetch(float *to, int row_stride, int k_stride, const struct op *o, bool is_b)
{
    uint64_t desc = is_b ? o->b : o->a;
    bool mn_major = is_b ? o->b_mn_major : o->a_mn_major;
    int rows = is_b ? o->columns : ROWS;
    descriptor_check(desc, mn_major, o->at);
    if (mn_major) {
        for (int k = 0; k < 16; k++)
            for (int mn = 0; mn < rows; mn += 8) {
                uint32_t address = chunk_address(desc, true, mn, k, 0);
                shared_check(address, 16, "wgmma operand", o->at);
                const uint16_t *p = (const uint16_t *)(emu_shared_async + address);
                for (int j = 0; j < 8; j++) {
                    union {
                        uint32_t bits;
                        float value;
                    } u = {(uint32_t)p[j] << 16};
                    to[(mn + j) * row_stride + k * k_stride] = u.value;
                }
            }
        return;
    }
    for (int row = 0; row < rows; row++)
        for (int byte = 0; byte < 32; byte += 16) {
            uint32_t address = chunk_address(desc, false, row, 0, byte);
            shared_check(address, 16, "wgmma operand", o->at);
            const uint8_t *p = emu_shared_async + address;
            if (o->fp8)
                for (int j = 0; j < 16; j++)
                    to[row * row_stride + (byte + j) * k_stride] = table[p[j]];
            else
                for (int j = 0; j < 8; j++) {
                    union {
                        uint32_t bits;
                        float value;
                    } u = {(uint32_t)((const uint16_t *)p)[j] << 16};
                    to[row * row_stride + (byte / 2 + j) * k_stride] = u.value;
                }
        }
}

/* ---- products ---- */

static void multiply(float *__restrict__ c, const float *a, const float *b, int columns, int depth)
{
    for (int m = 0; m < ROWS; m++) {
        float *__restrict__ row = c + m * columns;
        for (int k = 0; k < depth; k += 4) {
            const float *x = a + m * depth + k, *y = b + k * columns;
            for (int n = 0; n < columns; n++)
                row[n] += x[0] * y[n] + x[1] * y[n + columns] + x[2] * y[n + 2 * columns] +
                          x[3] * y[n + 3 * columns];
        }
    }
}

/* 2^exponent. */
static double power_of_two(int64_t exponent)
{
    union {
        int64_t bits;
        double value;
    } u = {(exponent + 1023) << 52};
    return u.value;
}

static int64_t exponent_of(float x)
{
    union {
        double value;
        int64_t bits;
    } u = {(double)x};
    return (u.bits >> 52 & 0x7ff) - 1023;
}

/* Of each column: terms are aligned to the largest of them, the old sum included, and cut off below
 * 13 fraction bits. */
static void hopper_row(float *__restrict__ c, const float *__restrict__ a,
                       const float *__restrict__ b, int columns, int depth)
{
    static float largest[COLUMNS_MAX];
    static double scale[COLUMNS_MAX], sum[COLUMNS_MAX];
    for (int n = 0; n < columns; n++)
        largest[n] = fabsf(c[n]);
    for (int k = 0; k < depth; k++)
        for (int n = 0; n < columns; n++) {
            const float term = fabsf(a[k] * b[k * columns + n]);
            largest[n] = term > largest[n] ? term : largest[n];
        }
    for (int n = 0; n < columns; n++) {
        scale[n] = power_of_two(13 - exponent_of(largest[n]));
        sum[n] = trunc(c[n] * scale[n]);
    }
    for (int k = 0; k < depth; k++)
        for (int n = 0; n < columns; n++)
            sum[n] += trunc((double)a[k] * b[k * columns + n] * scale[n]);
    for (int n = 0; n < columns; n++)
        c[n] = largest[n] > 0 && largest[n] < INFINITY ? (float)(sum[n] / scale[n])
                                                       : largest[n] + c[n] * 0;
}

static void op_run(float *c, const struct op *o)
{
    static float a[ROWS * 32], b[32 * COLUMNS_MAX];
    int depth = o->fp8 ? 32 : 16;
    fetch(a, depth, 1, o, false);
    fetch(b, 1, o->columns, o, true);
    if (!o->accumulate)
        fill_bytes(c, 0, sizeof(float) * (size_t)(ROWS * o->columns));
    if (!o->fp8 || !hopper_fp8) {
        multiply(c, a, b, o->columns, depth);
        return;
    }
    for (int m = 0; m < ROWS; m++)
        hopper_row(c + m * o->columns, a + m * depth, b, o->columns, depth);
}

/* Moves an accumulator between the matrix and the registers of the 128 threads. */
static void matrix_move(float *c, int first_thread, int accumulator, int columns, bool to_registers)
{
    for (int t = 0; t < 128; t++) {
        float *value = queues[first_thread + t].accumulators[accumulator].value;
        int row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
        for (int i = 0; i < columns / 2; i++) {
            float *at = c + (row + 8 * (i / 2 % 2)) * columns + i / 4 * 8 + column + i % 2;
            if (to_registers)
                value[i] = *at;
            else
                *at = value[i];
        }
    }
}

static void check_same(const struct op *a, const struct op *b)
{
    if (a->a != b->a || a->b != b->b || a->accumulate != b->accumulate ||
        a->columns != b->columns || a->fp8 != b->fp8 || a->accumulator != b->accumulator ||
        a->group != b->group)
        emu_fail(a->at, "wgmma: descriptors, shape or flags differ across the warpgroup");
}

/* Takes the first `count` ops off the queue; accumulators of groups before `waited` go back to
 * registers. */
static void retire(struct queue *q, int count, int waited)
{
    for (int i = 0; i < count; i++)
        if (q->done_count < OPS_MAX)
            copy_bytes(&q->done[q->done_count++], &q->ops[i], sizeof q->ops[i]);
    for (int i = count; i < q->count; i++)
        copy_bytes(&q->ops[i - count], &q->ops[i], sizeof q->ops[i]);
    q->count -= count;
    for (struct accumulator &a : q->accumulators)
        if (a.d && a.group < waited) {
            copy_bytes(a.d, a.value, sizeof(float) * (size_t)a.count);
            a.d = nullptr;
        }
}

/* Executes the committed groups but the newest `pending` of a warpgroup. COMMIT: all of them, with
 * nothing returned to registers, as nobody waited. */
static void groups_run(int first_thread, int argument)
{
    int pending = argument == COMMIT ? 0 : argument;
    static float c[ROWS * COLUMNS_MAX];
    struct queue *q = &queues[first_thread];
    int count = 0, loaded = -1;
    if (table[1] == 0)
        for (int i = 0; i < 256; i++) {
            __nv_fp8_e4m3 x;
            x.__x = (uint8_t)i;
            table[i] = (float)x;
        }
    shared_sync_async_view();
    for (; count < q->count && q->ops[count].group < q->committed - pending; count++) {
        const struct op *o = &q->ops[count];
        for (int t = 1; t < 128; t++) {
            if (queues[first_thread + t].count <= count)
                emu_fail(o->at, "wgmma: issued by some threads of the warpgroup only");
            check_same(o, &queues[first_thread + t].ops[count]);
        }
        if (loaded != o->accumulator) {
            if (loaded >= 0)
                matrix_move(c, first_thread, loaded, q->ops[count - 1].columns, true);
            matrix_move(c, first_thread, o->accumulator, o->columns, false);
            loaded = o->accumulator;
        }
        op_run(c, o);
    }
    if (loaded >= 0)
        matrix_move(c, first_thread, loaded, q->ops[count - 1].columns, true);
    for (int t = 0; t < 128; t++)
        retire(&queues[first_thread + t], count, argument == COMMIT ? 0 : q->committed - pending);
}

/* Each warp reads 16 rows of A and all of B, ordered by its own waits only: one warp's arrival on
 * an "empty" barrier says nothing of the other three. Told by lane 0 of each warp. */
static void race_operand(uint64_t desc, bool mn_major, int first_row, int rows)
{
    uint32_t base = ((uint32_t)(desc & 0x3FFF) << 4) & ~127u,
             leading = (uint32_t)(desc >> 16 & 0x3FFF) << 4,
             stride = (uint32_t)(desc >> 32 & 0x3FFF) << 4;
    static const uint32_t pattern[] = {128, 1024, 512, 256};
    if (mn_major) {
        for (int row = first_row / 64 * 64; row < first_row + rows; row += 64)
            for (uint32_t k = 0; k < 2; k++)
                race_read(emu_shared + base + (uint32_t)row / 64 * leading + k * stride, 1024);
        return;
    }
    for (int row = first_row; row < first_row + rows; row += 8)
        race_read(emu_shared + base + (uint32_t)row / 8 * stride, pattern[desc >> 62]);
}

static void race_reads()
{
    struct queue *q = &queues[block_current()];
    for (int i = 0; i < q->done_count && RACE_CHECKED && emu_lane() == 0; i++) {
        const struct op *o = &q->done[i];
        race_operand(o->a, o->a_mn_major, block_current() / 32 % 4 * 16, 16);
        race_operand(o->b, o->b_mn_major, 0, o->columns);
    }
    q->done_count = 0;
}

/* ---- issue ---- */

static uint32_t operand_address(uint64_t desc)
{
    return (uint32_t)(desc & 0x3FFF) << 4;
}

const struct emu_at *wgmma_reading(int rank, uint32_t address, uint32_t bytes)
{
    const int first = rank * block_size();
    for (int t = first; t < first + block_size() && !RACE_CHECKED; t += 32)
        for (int i = 0; i < queues[t].count; i++) {
            const struct op *o = &queues[t].ops[i];
            if (operand_address(o->a) - address < bytes || operand_address(o->b) - address < bytes)
                return &o->at;
        }
    return nullptr;
}

static void check_loaded(uint64_t desc, struct emu_at at)
{
    const struct emu_at *load = tma_load_at(operand_address(desc));
    if (load)
        emu_fail(at, "wgmma reads what the TMA load at %s:%d is still writing", load->file,
                 load->line);
}

void emu_wgmma(float *d, int columns, bool fp8, bool a_mn_major, bool b_mn_major, uint64_t desc_a,
               uint64_t desc_b, bool accumulate, struct emu_at at)
{
    struct queue *q = &queues[block_current()];
    if (!q->fenced)
        emu_fail(at, "wgmma without wgmma_fence since the registers could last be touched");
    if (columns % 8 || columns > COLUMNS_MAX)
        emu_fail(at, "wgmma: N = %d", columns);
    if (q->count == OPS_MAX)
        emu_fail(at, "more than %d wgmma of one thread in flight", OPS_MAX);
    if (emu_lane() == 0) {
        check_loaded(desc_a, at);
        check_loaded(desc_b, at);
    }
    int found = -1, unused = -1;
    for (int i = ACCUMULATORS_MAX - 1; i >= 0; i--) {
        if (q->accumulators[i].d == d)
            found = i;
        else if (!q->accumulators[i].d)
            unused = i;
    }
    if (found < 0) {
        if (unused < 0)
            emu_fail(at, "more than %d accumulators of one thread in flight", ACCUMULATORS_MAX);
        struct accumulator *a = &q->accumulators[found = unused];
        a->d = d;
        a->count = columns / 2;
        copy_bytes(a->value, d, sizeof(float) * (size_t)a->count);
        fill_bytes(d, 0xff, sizeof(float) * (size_t)a->count);
    }
    q->accumulators[found].group = q->committed;
    q->ops[q->count++] = {found,      columns, fp8,    a_mn_major,   b_mn_major,
                          accumulate, desc_a,  desc_b, q->committed, {at.file, at.line}};
}

void emu_wgmma_fence()
{
    queues[block_current()].fenced = true;
    used = true;
}

void emu_wgmma_commit(struct emu_at at)
{
    queues[block_current()].committed++;
    used = true;
    if (emu_seed() % 2) {
        warpgroup_meet("wgmma_commit", groups_run, COMMIT, at);
        race_reads();
    }
}

/* Late seeds let others go on for some rounds while the tensor cores "still read": what is released
 * too early gets overwritten. */
void emu_wgmma_wait(int pending, struct emu_at at)
{
    if (emu_seed() % 2 == 0 && block_current() % 128 == 0)
        for (int rounds = 2 + (int)(emu_random() % 3); rounds > 0; rounds--)
            emu_yield(at);
    warpgroup_meet("wgmma_wait", groups_run, pending, at);
    queues[block_current()].fenced = false;
    race_reads();
}

void emu_registers(int count, struct emu_at at)
{
    if (count % 8 || count < REGISTERS_LEAST || count > 256)
        emu_fail(at, "registers_increase/decrease: %d is not a multiple of 8 in [24, 256]", count);
    /* A block is launched with as many registers a thread as its threads share, a multiple of 8,
     * and gets no more: an increase waits for what other warpgroups give up, for ever if that is
     * too little. Warpgroups that have not asked yet may go down to the least. */
    const int launched = REGISTERS / block_size() / 8 * 8, groups = (block_size() + 127) / 128,
              first = block_rank() * groups;
    int sum = 0;
    registers[block_current() / 128] = count;
    for (int i = 0; i < groups; i++)
        sum += registers[first + i] ? registers[first + i] : REGISTERS_LEAST;
    if (sum > groups * launched)
        emu_fail(at, "setmaxnreg %d: the block's warpgroups want %d registers of %d x %d", count,
                 sum, groups, launched);
    warpgroup_meet("setmaxnreg", nullptr, count, at);
}
