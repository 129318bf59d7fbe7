/* mlp: a SwiGLU MLP that every token visits: a dense layer's, or the shared experts of a layer.
 * y = down(silu(gate x) * (up x)) (Shazeer 2020).
 */
#ifndef TRAINER_MLP_H
#define TRAINER_MLP_H

#include "kernels/base/tensor.h"
#include "trainer/model/architecture.h"
#include "trainer/model/layout.h"

struct model;

struct mlp_state {
    void *gate_up; /* [N,2F] act */
};

/* Buffers of one call, shared by all; as wide as the widest MLP. */
struct mlp_scratch {
    void *hidden, *dhidden; /* [N,F] act */
};

/* Inner width of the widest of them; 0: the model has none. */
int64_t mlp_widest(const struct architecture *arch);

void mlp_layout(const struct model *model, struct mlp_state *state, const struct mlp_state *lender,
                int64_t inner, const struct layout *layout);
void mlp_scratch_layout(const struct model *model, struct mlp_scratch *scratch,
                        struct arena *arena);

/* With the weights of `block`, inner width F: y[n,C] = (add ? y : 0) + mlp(x[n,C]), up and then
 * down. Both passes come in two parts, because shared experts do the first while rows travel to the
 * routed ones, and add to what those made in the second. */
void mlp_forward_up(struct model *model, int64_t block, int64_t inner, struct tensor x);
void mlp_forward_down(struct model *model, int64_t block, int64_t inner, struct tensor y, bool add);
/* Gradients of both weights add; gate_up becomes its gradient; then, of that, dx = (add ? dx : 0) +
 * gradient. */
void mlp_backward_down(struct model *model, int64_t block, int64_t inner, struct tensor dy,
                       struct tensor x);
void mlp_backward_up(struct model *model, int64_t block, int64_t inner, struct tensor dx, bool add);

#endif
