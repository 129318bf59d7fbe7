/* mbarrier, named barriers, election, register counts, shared addresses. */
#include "conformance.h"

#include "kernels/cuda/ptx.cuh"

enum { ROUNDS = 9, STAGES = 2 };

/* seen[0..7]: what mbarrier_test says of either parity before, during and after the first phase of
 * a barrier of 128 arrivals, and after its second. */
__global__ void __launch_bounds__(128) phases_kernel(uint32_t *seen)
{
    SMEM(uint64_t, bar, [1]);
    int first = threadIdx.x == 0;
    if (first) {
        mbarrier_init(bar, 128);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (first) {
        seen[0] = mbarrier_test(bar, 0);
        seen[1] = mbarrier_test(bar, 1);
    }
    __syncthreads();
    if (!first)
        mbarrier_arrive(bar);
    __syncthreads();
    if (first) {
        seen[2] = mbarrier_test(bar, 0);
        seen[3] = mbarrier_test(bar, 1);
        mbarrier_arrive(bar);
    }
    mbarrier_wait(bar, 0);
    if (first) {
        seen[4] = mbarrier_test(bar, 0);
        seen[5] = mbarrier_test(bar, 1);
    }
    __syncthreads();
    mbarrier_arrive(bar);
    mbarrier_wait(bar, 1);
    if (first) {
        seen[6] = mbarrier_test(bar, 0);
        seen[7] = mbarrier_test(bar, 1);
    }
}

/* A ring: warp 0 writes ROUNDS rows of x into STAGES slots, warp 1 reads them into y, doubled. */
__global__ void __launch_bounds__(64) ring_kernel(const uint32_t *x, uint32_t *y)
{
    SMEM(uint64_t, full, [STAGES]);
    SMEM(uint64_t, empty, [STAGES]);
    SMEM(uint32_t, slot, [STAGES][32]);
    int lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(&full[i], 32);
            mbarrier_init(&empty[i], 1);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    for (int i = 0; i < ROUNDS; i++) {
        int stage = i % STAGES, round = i / STAGES & 1;
        if (threadIdx.x < 32) {
            mbarrier_wait(&empty[stage], round ^ 1);
            slot[stage][lane] = x[i * 32 + lane];
            mbarrier_arrive(&full[stage]);
        } else {
            mbarrier_wait(&full[stage], round);
            y[i * 32 + lane] = 2 * slot[stage][lane];
            __syncwarp();
            if (lane == 0)
                mbarrier_arrive(&empty[stage]);
        }
    }
}

/* Warps 0 and 1 write and arrive on barrier 1, warps 2 and 3 wait there, turn the values round and
 * meet on barrier 2 before they read each other's. */
__global__ void __launch_bounds__(128) named_kernel(const uint32_t *x, uint32_t *y)
{
    SMEM(uint32_t, in, [64]);
    SMEM(uint32_t, out, [64]);
    int i = threadIdx.x % 64;
    if (threadIdx.x < 64) {
        in[i] = x[i];
        named_barrier_arrive(1, 128);
        return;
    }
    named_barrier_sync(1, 128);
    out[i] = in[63 - i] + 1;
    named_barrier_sync(2, 64);
    y[i] = out[i ^ 32];
}

/* elected[warp]: lanes of the warp that elect_one chose; then the distances of shared addresses. */
__global__ void __launch_bounds__(128) elect_kernel(uint32_t *elected, uint32_t *distance)
{
    SMEM(uint8_t, bytes, [64]);
    uint32_t votes = __popc(__ballot_sync(0xffffffffu, elect_one()));
    if (threadIdx.x % 32 == 0)
        elected[threadIdx.x / 32] = votes;
    if (threadIdx.x < 64)
        distance[threadIdx.x] = shared_address(&bytes[threadIdx.x]) - shared_address(bytes);
}

/* Warpgroup 0 gives registers up, 1 and 2 take them. */
__global__ void __launch_bounds__(384, 1) registers_kernel(const uint32_t *x, uint32_t *y)
{
    if (threadIdx.x < 128) {
        registers_decrease<40>();
        y[threadIdx.x] = x[threadIdx.x] + 1;
        return;
    }
    registers_increase<232>();
    y[threadIdx.x] = x[threadIdx.x] + 2;
}

static std::vector<uint32_t> random_words(const struct conformance *c, const char *name,
                                          size_t count)
{
    std::vector<uint32_t> words(count);
    for (size_t i = 0; i < count; i++)
        words[i] = (uint32_t)conformance_bits(c->seed, name, i);
    return words;
}

static void mbarriers(struct conformance *c)
{
    device_vector<uint32_t> seen(std::vector<uint32_t>(8, 9));
    LAUNCH(phases_kernel, 1, 128, 0, nullptr, seen.data);
    /* The phase before the first counts as completed: parity 1. */
    conformance_exact<uint32_t>(c, "mbarrier_test", seen.get(), {0, 1, 0, 1, 1, 0, 0, 1});

    std::vector<uint32_t> x = random_words(c, "ring", ROUNDS * 32), want(x);
    device_vector<uint32_t> dx(x), dy(std::vector<uint32_t>(x.size(), 0));
    for (uint32_t &w : want)
        w *= 2;
    LAUNCH(ring_kernel, 1, 64, 0, nullptr, dx.data, dy.data);
    conformance_exact(c, "mbarrier ring", dy.get(), want);
}

void conformance_barriers(struct conformance *c)
{
    mbarriers(c);

    std::vector<uint32_t> x = random_words(c, "named", 64), want(64);
    device_vector<uint32_t> dx(x), dy(std::vector<uint32_t>(64, 0));
    for (size_t i = 0; i < 64; i++)
        want[i] = x[63 - (i ^ 32)] + 1;
    LAUNCH(named_kernel, 1, 128, 0, nullptr, dx.data, dy.data);
    conformance_exact(c, "named barriers", dy.get(), want);

    device_vector<uint32_t> elected(std::vector<uint32_t>(4, 0)),
        distance(std::vector<uint32_t>(64, 0));
    LAUNCH(elect_kernel, 1, 128, 0, nullptr, elected.data, distance.data);
    conformance_exact<uint32_t>(c, "elect_one", elected.get(), {1, 1, 1, 1});
    std::vector<uint32_t> bytes(64);
    for (uint32_t i = 0; i < 64; i++)
        bytes[i] = i;
    conformance_exact(c, "shared_address", distance.get(), bytes);

    x = random_words(c, "registers", 384);
    want = x;
    for (size_t i = 0; i < 384; i++)
        want[i] += i < 128 ? 1 : 2;
    device_vector<uint32_t> dr(x), ds(std::vector<uint32_t>(384, 0));
    LAUNCH(registers_kernel, 1, 384, 0, nullptr, dr.data, ds.data);
    conformance_exact(c, "registers_increase, _decrease", ds.get(), want);
}
