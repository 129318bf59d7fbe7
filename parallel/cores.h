/* cores: which cores this rank may use. */
#ifndef PARALLEL_CORES_H
#define PARALLEL_CORES_H

#include "parallel/comm.h"

/* This rank's share of the node's allowed cores: contiguous, by node rank. Open MPI binds a rank to
 * one core; the allowed set is what the kernel leaves (cgroup) when that mask is widened. wanted 0:
 * the whole share; more threads than the share wrap around it. Writes `return value` core numbers
 * to cores[max]. */
int cores_share(const struct comm *world, int wanted, int *cores, int max);

/* The calling thread may run on any core of the rank's share, whatever its creator was pinned to.
 */
void cores_roam(const struct comm *world);

#endif
