/* mlp: SwiGLU MLPs, y = down(silu(gate x) * (up x)) (Shazeer 2020): a dense layer's, the shared
 * experts of a layer, or this rank's routed experts, whose rows are sorted by expert.
 *
 * In FP8 backward reads gate and up from their codes (mlp_state.kept); where they are made again
 * they become codes again, so that the bits are those of a run that kept them.
 */
#ifndef TRAINER_MLP_H
#define TRAINER_MLP_H

#include "kernels/base/tensor.h"
#include "trainer/model/architecture.h"
#include "trainer/model/layout.h"
#include "trainer/model/linear.h"

struct mlp_state {
    void *gate_up;          /* [R,2F] act; NULL in FP8 */
    struct fp8_buffer kept; /* its codes, in FP8 when training */
};

/* Buffers of one call, shared by all of a kind: by dense MLPs and shared experts, whose two parts
 * stand around a call of the routed experts; and by those. As large as the largest. */
struct mlp_scratch {
    void *gate_up;          /* [R,2F] act; where there is FP8 */
    void *hidden, *dhidden; /* [R,F] act; hidden: where there are blocks without FP8 */
    struct fp8_buffer hidden_codes, d_codes; /* in FP8 of hidden, and of the gradient of gate_up */
};

/* One MLP, or one for each group of rows. */
struct mlp {
    const struct linears *linears;     /* borrowed */
    const struct mlp_scratch *scratch; /* borrowed */
    struct mlp_state *state;           /* borrowed */
    const struct linear *up, *down;    /* [2F,C], [C,F] */
    const int64_t *offset;             /* rows of each expert (device); NULL: one MLP for all */
    const int64_t *source_offset; /* of each expert and source, where linear.sources is not 1, else
                                     the same */
};

/* Inner width of the widest that every token visits; 0: the model has none. */
int64_t mlp_widest(const struct architecture *arch);

void mlp_layout(struct mlp_state *state, const struct mlp_state *lender, int64_t rows,
                int64_t inner, enum dtype act, const struct layout *layout);
/* For calls of up to `rows` rows and inner width `inner`. lender: another lane's, as moe.h's. */
void mlp_scratch_layout(struct mlp_scratch *scratch, const struct linears *linears, int64_t rows,
                        int64_t inner, const struct mlp_scratch *lender, struct arena *arena);

/* Both passes come in parts, between which rows may travel (moe.h).
 *
 * hidden from x[R,C]; `keep`: backward will follow. Then y[R,C] = (add ? y : 0) + down hidden. */
void mlp_forward_up(const struct mlp *mlp, const struct operand *x, bool keep);
void mlp_forward_down(const struct mlp *mlp, struct tensor y, bool add);

/* What backward reads, made from x again. */
void mlp_restore(const struct mlp *mlp, const struct operand *x);
/* The gradient of the down weights adds, that of gate and up is made and takes the place of
 * what the state kept. dy: a tensor or, in FP8, codes. */
void mlp_backward_down(const struct mlp *mlp, struct operand dy);
/* Of that, in any order: dx[R,C] = (add ? dx : 0) + gradient; the gradient of the up weights adds.
 */
void mlp_backward_up(const struct mlp *mlp, struct tensor dx, bool add);
void mlp_backward_up_weight(const struct mlp *mlp, const struct operand *x);

#endif
