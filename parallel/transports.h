/* transports: how comm_open reaches its implementations. */
#ifndef PARALLEL_TRANSPORTS_H
#define PARALLEL_TRANSPORTS_H

#include "parallel/comm.h"

void comm_self_open(struct comm *world);
enum status comm_mpi_open(struct comm *world) __attribute__((warn_unused_result));

#endif
