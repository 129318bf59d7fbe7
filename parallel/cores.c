#define _GNU_SOURCE
#include "parallel/cores.h"

#include <assert.h>
#include <sched.h>
#include <unistd.h>

/* The kernel cuts a too wide mask down to what the cgroup allows. The widened mask stays:
 * device_open pins, or run.pin is off. */
static int allowed_cores(int *cores, int max)
{
    cpu_set_t all, allowed;
    int count = 0;
    CPU_ZERO(&all);
    for (int core = 0; core < CPU_SETSIZE; core++) {
        CPU_SET((size_t)core, &all);
    }
    (void)sched_setaffinity(0, sizeof all, &all);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) {
        cores[0] = 0;
        return 1;
    }
    for (int core = 0; core < CPU_SETSIZE && count < max; core++) {
        if (CPU_ISSET((size_t)core, &allowed)) {
            cores[count++] = core;
        }
    }
    return count;
}

int cores_share(const struct comm *world, int wanted, int *cores, int max)
{
    int all[CPU_SETSIZE];
    const int count = allowed_cores(all, CPU_SETSIZE);
    const int each = count / world->node_size > 0 ? count / world->node_size : 1;
    const int threads = wanted > 0 ? wanted : each;
    assert(threads <= max);
    for (int i = 0; i < threads; i++) {
        cores[i] = all[(world->node_rank * each + i % each) % count];
    }
    return threads;
}

void cores_roam(const struct comm *world)
{
    int cores[CPU_SETSIZE];
    const int count = cores_share(world, 0, cores, CPU_SETSIZE);
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int i = 0; i < count; i++) {
        CPU_SET((size_t)cores[i], &set);
    }
    (void)sched_setaffinity(0, sizeof set, &set); /* refused: slower, never wrong */
}
