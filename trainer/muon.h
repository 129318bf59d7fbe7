/* muon: who orthogonalises which matrix (Muon, Jordan et al. 2024; scaled as in Moonlight, Liu et
 * al. 2025).
 *
 * ZeRO-1 cuts a flat group at arbitrary elements, Newton-Schulz needs whole matrices. So every
 * matrix has one owner among the group's replicas, the most expensive ones given out first, each to
 * the rank with least to do: the same on every rank. Momentum stays with the share like any other
 * moment (checkpoints reshard unchanged); what travels is the update made from it, to the owner and
 * back, once each way: every rank sends and gets about one share in f32. Whole matrices form in the
 * gradient buffer, which nobody needs any more (with sharded gradients: in one of their own);
 * beyond it there is scratch for one matrix. An owner sees the same matrix whatever the number of
 * replicas, so the weights have the same bits for any number of them, as long as the summed
 * gradients have.
 *
 * Of what tp or etp divides every rank of these has the same matrices to own, and of each a part.
 * They take turns: of as many matrices as there are such ranks, each rank gets the parts of one,
 * orthogonalises it whole and sends the parts back. So each does its share of the work, and the
 * weights have the bits of one rank here too, with fp32 moments.
 */
#ifndef TRAINER_MUON_H
#define TRAINER_MUON_H

#include "kernels/base/status.h"
#include "parallel/zero.h"
#include "trainer/model/params.h"

/* What the group's dearest rank does, for trainer/plan: of the matrices it owns, or, where they are
 * divided, of those it has whole, the first of each turn. */
struct muon_load {
    int64_t matrices;
    int64_t cost;     /* multiply-adds of one Newton-Schulz step */
    int64_t entries;  /* elements, of whole matrices */
    int64_t squares;  /* of the short sides */
    int64_t received; /* muon_plan's */
};

/* Of one group. */
struct muon_plan {
    int *owner;              /* [params] owned: rank in zero.comm; -1: not Muon's, or frozen */
    int64_t *send, *receive; /* [ranks] owned: elements of this share to each owner; of this rank's
                                matrices from each share */
    int64_t *next;           /* [ranks] owned: scratch of packing */
    int64_t received;        /* elements of a rank's matrices, of the rank that has most */
    int64_t scratch;         /* floats for the largest matrix of this rank, and, where shares have
                                several parts, for itself: its pieces come apart */
    /* where matrices are divided: */
    struct comm *peers;  /* borrowed: ranks with the other parts; NULL: matrices are whole */
    int64_t *order;      /* [owned] owned: indices of this rank's matrices, the dearest first */
    int64_t *from;       /* [owned, ranks] owned: where in group->whole a matrix's piece from each
                            share is */
    int64_t *out, *back; /* [peers] owned: elements to and from each in a turn */
    int64_t owned;
    struct muon_load load;
    int64_t largest; /* elements of the largest matrix, a multiple of 64 */
};

/* Local. peers: the ranks that have the group's matrices together; NULL, or one: each is whole.
 * Errors: STATUS_RESOURCE. Without matrices: owner is NULL and muon_step does nothing. */
enum status muon_plan_init(struct muon_plan *plan, const struct params *params,
                           enum param_group group, const struct zero *zero, struct comm *peers)
    __attribute__((warn_unused_result));
void muon_plan_free(struct muon_plan *plan); /* accepts a zeroed one */

/* Elements [first, last) of a parameter, counted in its group, that lie in a rank's share;
 * first >= last: none. */
struct param_piece {
    int64_t first, last;
};
struct param_piece param_piece(const struct param *param, const struct zero *zero, int rank);

struct model;
struct muon;

/* Collective over the group's replicas and plan's peers. Gradients of this share become updates,
 * travel, and change masters and weights of this share. `args`: lr, momentum, decay, gradient
 * scale; step: for the noise of the moments. The group's gradients are gone afterwards. */
void muon_step(struct model *model, enum param_group group, const struct muon *args, int64_t step);

#endif
