/* divided: around the matrices that tp divides: rows of all tokens come together in front of them,
 * parts of sums behind them (parallel/tensor.h). In FP8 what comes together are the codes that each
 * rank made of its own tokens.
 */
#ifndef TRAINER_DIVIDED_H
#define TRAINER_DIVIDED_H

#include "trainer/model/linear.h"

struct block_call;
struct model;

/* With one rank the plain products. Collective over tp.
 * block_gather: x of all tokens, in model->wide[buffer], until the next use of that; where it has
 * codes these alone, the bytes that one rank would make.
 * block_ready: codes of dy of all tokens, which every rank makes, counted once (linear_ready).
 * block_divided: y of all tokens = x w^T; uses wide[0].
 * block_divided_backward: dx = dy w of dy of all tokens, and the gradient of w; uses both.
 * block_join: y = (add ? y : 0) + the sum over tp of this rank's tokens of `part`, which stands in
 * what block_part gave, f32 in wide[1], so that sums are rounded once; with one rank that is y
 * itself. */
struct operand block_gather(const struct model *model, const struct block_call *call, int buffer,
                            const struct operand *x);
void block_ready(struct model *model, const struct linear *linear, struct operand *dy);
void block_divided(const struct model *model, const struct linear *linear,
                   const struct block_call *call, struct tensor y, const struct operand *x);
void block_divided_backward(const struct model *model, const struct linear *linear,
                            const struct block_call *call, struct tensor dx, struct tensor dy,
                            const struct operand *x);
struct tensor block_part(const struct model *model, const struct block_call *call, struct tensor y);
void block_join(const struct model *model, const struct block_call *call, struct tensor y,
                struct tensor part, bool add);

#endif
