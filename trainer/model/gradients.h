/* gradients: where the gradients of weights add up: in f32, or, with run.deterministic layout, as
 * integers (kernels/ops_fixed.h; docs/determinism.md says why and how large).
 *
 * In both modes an op adds in f32 at gradients_place. With integers that is one buffer of zeros for
 * all, as large as the largest matrix; gradients_add behind the op takes what is in it over.
 */
#ifndef TRAINER_GRADIENTS_H
#define TRAINER_GRADIENTS_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/base/arena.h"
#include "kernels/ops_fixed.h"

struct comm;
struct model;

enum { GRADIENT_BITS = 48 }; /* 1 is 2^48 integers, whatever the gradient's unit (model.unit) */

struct gradients {
    struct device *device;     /* borrowed */
    const struct ops *ops;     /* borrowed */
    const struct model *model; /* borrowed */
    bool fixed;                /* as integers; all below is of that */
    int64_t most_adds;         /* to one element in a step: a power of two */
    float *unit;               /* [largest matrix] device: zeros between ops */
    struct fixed_point *point; /* [1] device */
    int64_t *square;           /* [FIXED_LIMBS] device: gradients_square's sum */
    int64_t saturated, bad;    /* elements of the last step that were left out, all ranks' */
};

/* Local. Errors: STATUS_USAGE where the device has no such sums. */
enum status gradients_init(struct gradients *gradients, const struct model *model)
    __attribute__((warn_unused_result));
/* The unit buffer and what is small. After linears_layout. Measures, then hands out. */
void gradients_layout(struct gradients *gradients, const struct model *model, struct arena *arena);

/* Nothing added, nothing counted; what comes is counted in `unit`s. */
void gradients_begin(struct gradients *gradients, double unit);

/* Where an op adds the gradient that is kept at `grad` (f32), or as integers. */
static inline float *gradients_place(const struct gradients *gradients, float *grad)
{
    return gradients->fixed ? gradients->unit : grad;
}

/* After that op: integers at `sum` add what it gave, `count` elements; of frozen parameters nothing
 * is added and nothing counted. In f32: nothing to do. */
void gradients_add(const struct gradients *gradients, int64_t *sum, int64_t count);
/* The rows of the matrix kept at sum[rows, cols] that are of no frozen parameter: it is one
 * parameter, or two, one below the other. */
struct fixed_rows gradients_live(const struct gradients *gradients, const int64_t *sum,
                                 int64_t rows, int64_t cols);

/* The f32 number that sum[i] stands for, in `unit`s, is f(sum[i]) * gradients_quantum(unit), f:
 * rounded to f32. */
float gradients_quantum(double unit);
/* out[count]: those numbers. */
void gradients_decode(const struct gradients *gradients, float *out, const int64_t *sum,
                      int64_t count, double unit);
/* Their squares go into the norm. */
void gradients_square(const struct gradients *gradients, const int64_t *sum, int64_t count);
/* Collective over `world`. The norm of everything that was squared since gradients_begin, on all
 * ranks, in units of 1: the same bits whoever squared what. Not finite where an element was left
 * out: NAN for what was not finite, else INFINITY. */
double gradients_norm(struct gradients *gradients, struct comm *world);

#endif
