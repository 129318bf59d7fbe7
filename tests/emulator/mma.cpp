#include "emulator/block.h"

/* Fragments of one lane, as the PTX manual lays them out: they live in the lane's own registers. */
struct fragments {
    float *d;
    const uint32_t *a, *b;
};
enum { ROWS = 16, COLUMNS = 8, DEPTH = 16 };

static float half_of(uint32_t pair, int half)
{
    union {
        uint32_t bits;
        float value;
    } u = {half ? pair & 0xffff0000u : pair << 16};
    return u.value;
}

/* Sums in f32, k ascending. */
static void multiply(const uint64_t *slots)
{
    float a[ROWS][DEPTH], b[DEPTH][COLUMNS];
    for (int lane = 0; lane < 32; lane++) {
        const struct fragments *f = (const struct fragments *)(uintptr_t)slots[lane];
        const int group = lane / 4, pair = lane % 4 * 2;
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < 4; i++)
                a[group + i % 2 * 8][pair + i / 2 * 8 + half] = half_of(f->a[i], half);
            for (int i = 0; i < 2; i++)
                b[pair + i * 8 + half][group] = half_of(f->b[i], half);
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        const struct fragments *f = (const struct fragments *)(uintptr_t)slots[lane];
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            float sum = f->d[i];
            for (int k = 0; k < DEPTH; k++)
                sum += a[row][k] * b[k][column];
            f->d[i] = sum;
        }
    }
}

void emu_mma_bf16(float *d, const uint32_t *a, const uint32_t *b, struct emu_at at)
{
    const struct fragments own = {d, a, b};
    warp_run((uint64_t)(uintptr_t)&own, multiply, at);
}
