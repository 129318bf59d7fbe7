#include "kernels/cpu/share.h"

struct share share_even(int64_t tasks, int threads, int self)
{
    return (struct share){.next = tasks * self / threads, .end = tasks * (self + 1) / threads};
}

int64_t share_take(struct share *shares, int threads, int self)
{
    for (int i = 0; i < threads; i++) {
        struct share *at = &shares[(self + i) % threads];
        int64_t task;
#pragma omp atomic read
        task = at->next;
        if (task >= at->end) { /* without a write to the line of one that is done */
            continue;
        }
#pragma omp atomic capture
        task = at->next++;
        if (task < at->end) {
            return task;
        }
    }
    return -1;
}
