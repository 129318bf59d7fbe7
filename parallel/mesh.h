/* mesh: which ranks form which groups.
 *
 * The ranks are pp stages of a pipeline, one behind the other. Inside a stage every rank stands in
 * two grids at once (parallel folding, Liu et al. 2025): for attention and all that every token
 * visits dp x cp x tp, for the experts edp x ep x etp, over the same ranks. The last axis runs
 * fastest:
 *
 *   rank = ((p * dp + d) * cp + c) * tp + t = ((p * edp + x) * ep + e) * etp + f
 *
 * Expert e lives on the ep rank e / (E / ep). What every rank of a stage has alike (norms, routers)
 * is reduced over the stage, what tp divides over `replicas`, experts over edp.
 */
#ifndef PARALLEL_MESH_H
#define PARALLEL_MESH_H

#include "parallel/nodes.h"

/* Sizes of the axes; dp and edp follow from the number of ranks. */
struct mesh_shape {
    int pp;                        /* stages of the pipeline */
    int tp;                        /* ranks among which dense matrices and sequences are divided */
    int cp;                        /* ranks among which sequences are divided, attention included */
    int ep;                        /* ranks among which one set of experts is divided */
    int etp;                       /* ranks among which each expert's matrices are divided */
    enum nodes_wish node_dispatch; /* how `experts` goes across machines */
    int ranks_per_node;            /* 0: what MPI says */
};

/* The other axes 1. */
static inline struct mesh_shape mesh_shape_of(int tp, int ep)
{
    return (struct mesh_shape){.pp = 1, .tp = tp, .cp = 1, .ep = ep, .etp = 1};
}

enum mesh_group {
    MESH_PP,
    MESH_DP,
    MESH_CP,
    MESH_TP,
    MESH_REPLICAS,
    MESH_STAGE,
    MESH_EP,
    MESH_ETP,
    MESH_EXPERTS,
    MESH_EDP,
    MESH_GROUPS
};

struct mesh {
    struct comm *world; /* borrowed */
    struct mesh_shape shape;
    struct comm pp;       /* the same place in every stage, first stage first */
    struct comm dp;       /* ranks with micro-batches of their own */
    struct comm cp, tp;   /* struct mesh_shape */
    struct comm replicas; /* dp x cp: ranks with the same part of what tp divides */
    struct comm stage;    /* dp x cp x tp = edp x ep x etp */
    struct comm ep, etp;  /* struct mesh_shape */
    struct comm experts;  /* ep x etp: ranks that have one set of experts together, and exchange
                             tokens; slice f of an expert is on rank e * etp + f of them */
    struct nodes nodes;   /* machines that `experts` stands on, where dispatch goes by them */
    struct comm edp;      /* ranks holding the same experts, or the same part of them */
    struct comm ends;     /* where pp > 1: the replicas of the first and of the last stage together,
                             which may hold the same (stages.h); elsewhere those of a stage. With pp
                             1 zeroed */
    bool staged;          /* rows between experts go through the host of a device that is not it, on
                             some rank, whose host waits for them; mesh_attach's */
};

/* Local. Whether `ranks` ranks can stand so, for layers of `experts` experts. Errors: STATUS_USAGE
 * with the numbers. */
enum status mesh_check(const struct mesh_shape *shape, int ranks, int64_t experts)
    __attribute__((warn_unused_result));
/* Local. The lowest rank of rank `rank`'s group of this kind; it names the group. Ranks of a group
 * are in rising order. */
int mesh_first(const struct mesh_shape *shape, int ranks, enum mesh_group group, int rank);

/* The same of mesh->ends. */
int mesh_ends_first(const struct mesh_shape *shape, int ranks, int rank);

/* Local. The lowest rank of the last stage. */
static inline int mesh_last_stage(const struct mesh *mesh)
{
    return mesh->world->size - mesh->world->size / mesh->shape.pp;
}

/* Collective over world. Errors: mesh_check's, nodes_init's; the same on every rank. */
enum status mesh_init(struct mesh *mesh, struct comm *world, const struct mesh_shape *shape,
                      int64_t experts) __attribute__((warn_unused_result));
/* comm_attach of the groups that exchange device memory: stage, tp, cp, experts and its machines,
 * edp, `replicas` where that is not the stage, etp where it is not one rank, and where there are
 * stages ends and pp, whose messages (mail.h) go through the host whatever carries the rest.
 * Collective over world; the same result on every rank of it. Errors: comm_attach's. */
enum status mesh_attach(struct mesh *mesh, struct device *device, const char *kind)
    __attribute__((warn_unused_result));
/* Local. comm_device_times of all groups that NCCL carries; false: of one of them not all. */
bool mesh_device_times(struct mesh *mesh, double *run_ms, double *waited_ms);
/* Local. The i-th of all groups that this rank is in, the same kind on every rank: the world, the
 * grids', the others; without ranks where there is no such group; NULL: there are no more. */
struct comm *mesh_each(struct mesh *mesh, int i);
/* Local, waits for nothing: rows on their way to experts and back may move on
 * (comm_device_progress).
 */
void mesh_progress(const struct mesh *mesh);
void mesh_free(struct mesh *mesh);

#endif
