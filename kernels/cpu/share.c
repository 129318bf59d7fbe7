#include "kernels/cpu/share.h"

#include <assert.h>

/* Tasks [next, end) as one word, which is compared and swapped whole. */
static uint64_t join(uint64_t next, uint64_t end)
{
    return end << 32 | next;
}

struct share share_even(int64_t tasks, int threads, int self)
{
    assert(tasks <= INT32_MAX);
    return (struct share){
        .left = join((uint64_t)(tasks * self / threads), (uint64_t)(tasks * (self + 1) / threads))};
}

int64_t share_take(struct share *shares, int threads, int self)
{
    for (int i = 0; i < threads; i++) {
        struct share *at = &shares[(self + i) % threads];
        uint64_t left = atomic_load_explicit(&at->left, memory_order_relaxed);
        while ((uint32_t)left < left >> 32) {
            const uint64_t next = (uint32_t)left, end = left >> 32;
            const uint64_t rest = i == 0 ? join(next + 1, end) : join(next, end - 1);
            if (atomic_compare_exchange_weak(&at->left, &left, rest)) {
                return (int64_t)(i == 0 ? next : end - 1);
            }
        }
    }
    return -1;
}
