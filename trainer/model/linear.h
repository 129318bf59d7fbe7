/* linear: the linear layers of a model, y = x w^T and back, in the dtype of activations or in FP8
 * (kernels/ops_fp8.h has the recipe, docs/fp8.md the whole of it).
 *
 * One table of layers, by block and name, says where weights and gradients are and, in a block of
 * FP8, their codes. What a product reads is an operand: a tensor, or its codes; the functions here
 * take the one that the layer wants, so that attention, MLPs and experts are written once.
 *
 * Weights become codes, in both orientations when training, once after each update
 * (linears_publish). Where weights are gathered a part at a time (gathered.h) their codes stand in
 * two windows likewise, made whenever a block comes to be used. The codes of a layer's input are
 * kept for its backward, where they are turned by requantising; an output's gradient is quantised
 * both ways in one pass.
 */
#ifndef TRAINER_LINEAR_H
#define TRAINER_LINEAR_H

#include "kernels/base/arena.h"
#include "kernels/ops_fp8.h"
#include "trainer/config/config.h"
#include "trainer/model/gradients.h"
#include "trainer/model/layout.h"

struct drawer;
struct mesh;
struct model;

enum linear_name {
    LINEAR_QKV,    /* grouped queries, keys and values */
    LINEAR_Q_A,    /* latent attention: the compressed query, */
    LINEAR_Q_B,    /* queries from it, or from the stream, */
    LINEAR_KV_A,   /* the latent, */
    LINEAR_K_ROPE, /* the rotary key all heads share, */
    LINEAR_KV_B,   /* keys and values from the latent */
    LINEAR_O,      /* the output of attention */
    LINEAR_UP,
    LINEAR_DOWN, /* dense MLP or shared experts; up: gate and up together */
    LINEAR_EXPERTS_UP,
    LINEAR_EXPERTS_DOWN, /* this rank's experts */
    LINEARS
};

/* One layer, or the same layer of every local expert. */
struct linear {
    int64_t out, in;         /* of a matrix; 0: the block has none */
    int64_t matrices;        /* 1, or local experts */
    int64_t sources;         /* units whose rows an expert's gradient is made of one by one
                                (gradients.h): 1, or, with integers, the ranks of ep */
    int64_t stride;          /* elements from one expert's to the next, of weights and gradients */
    void *weight;            /* [matrices, out, in] act */
    float *grad;             /* the same; NULL without training, and where it is */
    int64_t *sum;            /* in integers; else NULL */
    struct fixed_rows *live; /* [matrices] of experts, in integers: rows that are not frozen; NULL:
                                all; part of linears.live */
    struct fp8_weights w, t; /* w transposed: t, when training. code NULL: this layer is in act */
    bool gathered;           /* its weights and codes are there while its block is used alone */
    bool fresh;              /* of experts: the next gradient overwrites what `grad` has */
};

/* What a product reads. What is not there has data or code NULL. */
struct operand {
    struct tensor act;    /* [rows, cols] */
    struct fp8_rows q, t; /* its codes, plain and transposed */
};

/* What is counted apart. */
enum linear_kind { LINEAR_ACTIVATIONS, LINEAR_GRADIENTS, LINEAR_WEIGHTS, LINEAR_KINDS };

enum { LINEAR_WINDOWS = 2 };

/* Codes of one operand of one product at a time, shared by all. */
struct linear_scratch {
    struct fp8_buffer x;                             /* an input that is not kept */
    struct fp8_buffer dy;                            /* a gradient */
    struct fp8_buffer dy_turned, x_turned, d_turned; /* transposed: output's gradient and input of
                                                        a layer, and the gradient inside an MLP */
};

struct linears {
    struct device *device;             /* borrowed */
    const struct ops *ops;             /* borrowed */
    const struct gradients *gradients; /* borrowed */
    enum dtype act;
    bool training;
    struct linear *table;    /* [blocks, LINEARS] owned */
    struct fixed_rows *live; /* [blocks, 2, local experts] owned; NULL: nothing is frozen */
    int64_t blocks;
    bool clean; /* what lies between experts' gradients, which they don't overwrite, is zero */
    /* of FP8 */
    int64_t first, end; /* blocks [first, end) are FP8; none: 0, 0 */
    bool power_of_two;  /* fp8.scales */
    enum fp8_accumulate accumulate;
    struct fp8_counters *counters; /* [LINEAR_KINDS] device: of activations and gradients since
                                      linears_count_anew, of weights at the last publish */
    bool again;                    /* what runs is a repetition (recompute): not counted */
    int64_t coded[LINEAR_WINDOWS]; /* blocks whose gathered weights have codes; -1: none */
    bool publishing;               /* codes of gathered weights are made for the first time */
    struct linear_scratch scratch;
    const struct mesh *mesh; /* borrowed: whose messages may move on behind each product */
    struct drawer *drawer;   /* borrowed: where products that make gradients of weights wait
                                (deferred.h); NULL: they are made at once */
};

/* Local. Errors: STATUS_RESOURCE; STATUS_USAGE where the device has no FP8. */
enum status linears_init(struct linears *linears, const struct model *model)
    __attribute__((warn_unused_result));
void linears_free(struct linears *linears); /* accepts a zeroed one */
/* After the weights and gradients of the model are laid out. Codes of weights come from `weights`,
 * scratch from `scratch`; measures, then hands out. */
void linears_layout(struct linears *linears, const struct model *model, struct arena *weights,
                    struct arena *scratch);

/* Collective over the replicas where weights are gathered. Codes of all weights from their act
 * copies; of gathered ones block by block, from behind, so that the first are there for forward. */
void linears_publish(struct model *model);
/* Local. The block's weights have been gathered: their codes, unless they are there. */
void linears_use(struct linears *linears, int64_t block);
/* Local. Gathered weights have changed. */
void linears_forget(struct linears *linears);
void linears_count_anew(struct linears *linears);
/* Local. Whether the first gradients of experts' weights in a step may overwrite what was there:
 * the device gains by it, and nothing but gradients was there since all were cleared. */
bool linears_may_overwrite(const struct model *model);
/* Local. Gradients have been cleared; overwrite: but those of experts, which their first overwrite.
 */
void linears_cleared(struct linears *linears, bool overwrite);
/* Local. Something else was written where gradients are. */
static inline void linears_dirtied(struct linears *linears)
{
    linears->clean = false;
}

/* Whether the codes of a layer of this block stand where it says. */
static inline bool linears_has(const struct linears *linears, const struct linear *linear,
                               int64_t block)
{
    return linear->w.code != NULL &&
           (!linear->gathered || linears->coded[block % LINEAR_WINDOWS] == block);
}

static inline bool linears_in_fp8(const struct linears *linears, int64_t block)
{
    return block >= linears->first && block < linears->end;
}

const struct linear *linears_at(const struct linears *linears, int64_t block,
                                enum linear_name name);

/* Views of a buffer: rows of codes; of x[rows, cols] transposed, tokens in `groups`. */
struct fp8_rows fp8_view(struct fp8_buffer buffer, int64_t rows, int64_t cols);
struct fp8_rows fp8_turned(struct fp8_buffer buffer, int64_t rows, int64_t cols, int64_t groups);

/* How to quantise something of this kind. */
struct fp8_how linears_how(const struct linears *linears, enum linear_kind kind);
/* ... without counting it. */
struct fp8_how linears_how_silent(const struct linears *linears);

/* The norm of x + delta, in what y has (ops.norm_forward; with codes: fp8_ops.norm_forward). */
void linear_norm(const struct linears *linears, const struct operand *y, struct tensor sum,
                 float *rstd, struct tensor x, struct tensor delta, struct tensor w, float eps);

/* y = x w^T; offset: rows of x by expert, NULL: there is one matrix. add: y += (one matrix only).
 */
void linear_forward(const struct linears *linears, const struct linear *linear, struct tensor y,
                    const struct operand *x, const int64_t *offset, bool add);
/* dx = dy w, or dx += dy w (one matrix only). */
void linear_backward_input(const struct linears *linears, const struct linear *linear,
                           struct tensor dx, const struct operand *dy, const int64_t *offset,
                           bool add);
/* What a gradient of weights sums over, and what is transposed for it, has its rows by expert and
 * source: `offset` [matrices * sources + 1] (device), NULL for one matrix.
 *
 * The weight's gradient adds dy^T x, at once or later (linears.drawer); in FP8 of dy->t and x->t.
 * tokens: rows of x. */
void linear_backward_weight(const struct linears *linears, const struct linear *linear,
                            const struct operand *dy, const struct operand *x,
                            const int64_t *offset, int64_t tokens);

/* For a layer in FP8, else nothing. x->t, where it is not there, from x->q or x->act, in
 * scratch.x_turned; valid until the next call. */
void linear_turn(const struct linears *linears, const struct linear *linear, struct operand *x,
                 const int64_t *offset);
/* dy->q and dy->t of an output's gradient, where they are not there; in scratch.dy and dy_turned.
 */
void linear_ready(const struct linears *linears, const struct linear *linear, struct operand *dy,
                  const int64_t *offset);

/* All of backward of a layer of one matrix: its gradient adds, dx overwrites or adds. x->t may be
 * there. */
void linear_backward(const struct linears *linears, const struct linear *linear, struct tensor dx,
                     struct tensor dy, const struct operand *x, bool add);

#endif
