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

/* Buffers of one call, shared by all; as large as the largest. */
struct mlp_scratch {
    void *gate_up;          /* [R,2F] act; where there is FP8 */
    void *hidden, *dhidden; /* [R,F] act; hidden: where there are blocks without FP8 */
};

/* One MLP, or one for each group of rows. */
struct mlp {
    const struct linears *linears;     /* borrowed */
    const struct mlp_scratch *scratch; /* borrowed */
    struct mlp_state *state;           /* borrowed */
    const struct linear *up, *down;    /* [2F,C], [C,F] */
    const int64_t *offset;             /* rows of each expert (device); NULL: one MLP for all */
};

/* Inner width of the widest that every token visits; 0: the model has none. */
int64_t mlp_widest(const struct architecture *arch);

void mlp_layout(struct mlp_state *state, const struct mlp_state *lender, int64_t rows,
                int64_t inner, enum dtype act, const struct layout *layout);
void mlp_scratch_layout(const struct model *model, struct mlp_scratch *scratch,
                        struct arena *arena);

/* y[R,C] = (add ? y : 0) + mlp(x[R,C]); `keep`: mlp_backward will follow. */
void mlp_forward(const struct mlp *mlp, struct tensor y, const struct operand *x, bool add,
                 bool keep);
/* What mlp_backward reads, made from x again. */
void mlp_restore(const struct mlp *mlp, const struct operand *x);
/* dx = (add ? dx : 0) + gradient; gradients of the weights add. In FP8 dy may come as codes, in the
 * scratch of linears. What the state kept is overwritten. */
void mlp_backward(const struct mlp *mlp, struct tensor dx, struct operand dy,
                  const struct operand *x, bool add);

#endif
