/* emulator: what emulated kernels call; simt_host.h and ptx_host.h put CUDA's names on it.
 *
 * Every CUDA thread is a fiber. A round resumes each runnable fiber once, in an order drawn from
 * the seed (seed 0: ascending); a fiber runs until it waits. When nothing can run any more the
 * deadlock is reported with the line every thread waits at. Blocks run one after another, in seeded
 * order; those of a cluster together. One emulated device per process; nothing here is for several
 * host threads.
 *
 * The runtime is never instrumented by a sanitizer: it tells the race checker itself what orders
 * what (race.h). It therefore calls no libc function that ThreadSanitizer intercepts.
 */
#ifndef EMULATOR_EMULATOR_H
#define EMULATOR_EMULATOR_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

/* Where in the kernel's source a call stands. */
struct emu_at {
    const char *file;
    int line;
};
/* Default arguments that name the caller's line, and their use. */
#define EMU_AT const char *emu_file = __builtin_FILE(), int emu_line = __builtin_LINE()
#define EMU_HERE (emu_at{emu_file, emu_line})

enum { EMU_SHARED_MAX = 227 << 10, EMU_THREADS_MAX = 1024, EMU_CLUSTER_MAX = 4, EMU_EXIT = 86 };

/* A launch; `name` and the line are for reports. */
struct emu_grid {
    dim3 grid, block;
    size_t shared_bytes;
    const void *kernel;
    const char *name;
    struct emu_at at;
    int cluster; /* blocks side by side in x that run at once; 0: 1 */
};

/* Kinds of warp collectives; lanes that meet must agree. */
enum emu_warp_kind {
    EMU_SHUFFLE = 1,
    EMU_VOTE,
    EMU_MATCH,
    EMU_REDUCE,
    EMU_SYNCWARP,
    EMU_MATRIX,
    EMU_ELECT
};

extern uint3 emu_thread_index, emu_block_index;
extern dim3 emu_block_dim, emu_grid_dim;

extern "C" {
/* Reports and ends the process with EMU_EXIT. */
[[noreturn]] void emu_fail(struct emu_at at, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* 0: ascending order, no delays. Others shuffle; even ones run wgmma and cp.async as late as
 * allowed, odd ones as early. Also read from the environment variable EMU_SEED at the first launch.
 */
void emu_set_seed(uint64_t seed);
uint64_t emu_seed(void);
uint64_t emu_random(void);
/* fp8 products summed as Hopper's tensor cores do (13 fraction bits of the largest term) or, the
 * default, in fp32. */
void emu_set_hopper_fp8(bool on);
void emu_set_capability(int major); /* that the devices say they have; 9, the default */
/* Shared memory a block can have, 227 KiB unless said, at most that; forgets every ALLOW_SMEM. */
void emu_set_shared_most(size_t bytes);
uint64_t emu_switches(void); /* fiber switches so far */

/* Runs a grid now. body(argument) is called in every thread. */
void emu_run_grid(const struct emu_grid *grid, void (*body)(void *), void *argument);
/* Queues it on a stream (cudart.cpp), with a copy of the argument. */
void emu_enqueue_grid(cudaStream_t stream, const struct emu_grid *grid, void (*body)(void *),
                      const void *argument, size_t bytes);
cudaError_t emu_allow_shared(const void *kernel, size_t bytes);

/* Shared memory. `key` is one per declaration; the first thread of a block that asks allocates. */
void *emu_shared_static(const void *key, size_t bytes, size_t align);
void *emu_shared_dynamic(void);
uint32_t emu_shared_address(const void *p, struct emu_at at);

/* Barriers. count 0: all threads of the block. The sum of `value` over the threads is returned, the
 * number of non-zero ones through `votes` (may be NULL). */
void emu_barrier(int id, int count, int value, int *votes, struct emu_at at);
void emu_barrier_arrive(int id, int count, struct emu_at at);
/* Exchanges one value per lane of `mask`; the 32 slots are valid until the thread's next call.
 * Only kinds that order memory (EMU_SYNCWARP) pass orders = true. */
const uint64_t *emu_warp(unsigned mask, enum emu_warp_kind kind, uint64_t value, bool orders,
                         struct emu_at at);
int emu_lane(void);
/* Clusters. */
int emu_cluster_rank(void);
void emu_cluster_sync(struct emu_at at);
void emu_yield(struct emu_at at);

/* PTX models; ptx.cuh says what each does. */
void emu_mbarrier_init(uint64_t *bar, uint32_t arrivals, struct emu_at at);
void emu_mbarrier_fence_init(void);
void emu_mbarrier_arrive(uint64_t *bar, uint32_t bytes, struct emu_at at);
void emu_mbarrier_arrive_at(uint64_t *bar, int rank, struct emu_at at);
bool emu_mbarrier_test(uint64_t *bar, uint32_t parity, struct emu_at at);
void emu_mbarrier_wait(uint64_t *bar, uint32_t parity, struct emu_at at);
void emu_fence_proxy_async(void);
void emu_tma_load(void *shared, const void *global, uint32_t bytes, uint64_t *bar,
                  struct emu_at at);
void emu_tma_load_box(void *shared, const void *map, uint64_t *bar, int x, int y, struct emu_at at);
void emu_tma_load_multicast(void *shared, const void *map, uint64_t *bar, int x, int y,
                            uint32_t mask, struct emu_at at);
void emu_tma_load_plane(void *shared, const void *map, uint64_t *bar, int x, int y, int z,
                        struct emu_at at);
void emu_tma_store(void *global, const void *shared, uint32_t bytes, struct emu_at at);
void emu_tma_store_box(const void *map, const void *shared, int x, int y, bool add,
                       struct emu_at at);
void emu_tma_store_commit(void);
void emu_tma_store_wait(int pending, bool read_only, struct emu_at at);
void emu_cp_async(void *shared, const void *global, int valid, struct emu_at at);
void emu_cp_async_commit(void);
void emu_cp_async_wait(int pending, struct emu_at at);
/* mma.cpp */
void emu_mma_bf16(float *d, const uint32_t *a, const uint32_t *b, struct emu_at at);

void emu_wgmma(float *d, int columns, bool fp8, bool a_mn_major, bool b_mn_major, uint64_t desc_a,
               uint64_t desc_b, bool accumulate, struct emu_at at);
void emu_wgmma_fence(void);
void emu_wgmma_commit(struct emu_at at);
void emu_wgmma_wait(int pending, struct emu_at at);
void emu_registers(int count, struct emu_at at);
}

#endif
