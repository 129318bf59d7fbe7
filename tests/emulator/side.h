/* side: what a test says to the emulator, and to nobody on a real device. REAL_CUDA is defined
 * where the test is linked with NVIDIA's runtime (tests/gpu). */
#ifndef EMULATOR_SIDE_H
#define EMULATOR_SIDE_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* Where a test should make fewer passes: under a race check, which costs tenfold (ThreadSanitizer;
 * on a device SWITCHYARD_SMALL=1 says so, for compute-sanitizer). */
static inline bool side_slow()
{
#ifdef __SANITIZE_THREAD__
    return true;
#else
    const char *small = getenv("SWITCHYARD_SMALL");
    return small && small[0] == '1';
#endif
}

#ifdef REAL_CUDA
#include <cuda_runtime_api.h>

#define SIDE_NAME "device"
static inline void side_set_seed(uint64_t)
{
}
static inline uint64_t side_seed()
{
    return 0;
}
static inline void side_set_hopper_fp8(bool)
{
}
static inline void side_set_capability(int) /* a device has the one it has */
{
}
static inline void side_set_shared_most(size_t)
{
}
#else
#include "emulator/emulator.h"

#define SIDE_NAME "emulator"
static inline void side_set_seed(uint64_t seed)
{
    emu_set_seed(seed);
}
static inline uint64_t side_seed()
{
    return emu_seed();
}
static inline void side_set_capability(int major)
{
    emu_set_capability(major);
}
static inline void side_set_shared_most(size_t bytes)
{
    emu_set_shared_most(bytes);
}
static inline void side_set_hopper_fp8(bool on)
{
    emu_set_hopper_fp8(on);
}
#endif

#endif
