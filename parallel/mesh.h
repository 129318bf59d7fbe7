/* mesh: which ranks form which groups.
 *
 * Attention is replicated over dp (all ranks here); experts live on ep x edp over the same ranks:
 * rank r has ep rank r % ep and edp rank r / ep. Expert e lives on ep rank e / (E / ep).
 */
#ifndef PARALLEL_MESH_H
#define PARALLEL_MESH_H

#include "parallel/comm.h"

struct mesh {
    struct comm *world; /* borrowed */
    struct comm dp;     /* ranks with the same dense parameters: all */
    struct comm ep;     /* ranks among which one set of experts is divided */
    struct comm edp;    /* ranks holding the same experts */
};

/* Collective over world. Errors: STATUS_USAGE when ep does not divide the ranks or the experts. */
enum status mesh_init(struct mesh *mesh, struct comm *world, int ep, int64_t experts)
    __attribute__((warn_unused_result));
/* comm_attach of every group. Collective over world; the same result on every rank of it. */
enum status mesh_attach(struct mesh *mesh, struct device *device, const char *kind)
    __attribute__((warn_unused_result));
void mesh_free(struct mesh *mesh);

#endif
