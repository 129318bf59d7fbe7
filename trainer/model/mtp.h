/* mtp: multi-token prediction (DeepSeek-V3, section 2.2; models.md 3).
 *
 * Module k (1 .. depth) predicts token p + k + 1 at position p from h^{k-1}_p and the embedding of
 * token p + k: u = eh_proj [enorm(Emb(t_{p+k})) ; hnorm(h^{k-1}_p)], one block with experts, h^k =
 * shared_head.norm of it, logits by the model's own head. h^0 is the model's output behind its
 * final norm. A sample of T tokens has T - k positions in module k: these tokens alone are routed.
 * The loss adds weight / depth * sum_k L_k, L_k = sum of -log p / counted labels of the main model.
 */
#ifndef TRAINER_MTP_H
#define TRAINER_MTP_H

#include "data/loader.h"
#include "kernels/base/arena.h"
#include "kernels/base/tensor.h"

struct model;
struct model_scale;

/* What forward of one module leaves for its backward; n = B * (T - k) of N tokens, of these this
 * rank's. */
struct mtp_state {
    int32_t *host;                     /* [4N] host, owned: the batch, k tokens further on */
    int32_t *storage;                  /* [4N]: the same */
    struct batch batch;                /* views of it */
    void *embedded;                    /* [N,C] act: embedding of token p + k */
    void *before;                      /* [N,C] act: h^{k-1} */
    void *both;                        /* [N,2C] act: the two, normed, side by side */
    float *rstd_e, *rstd_h, *rstd_out; /* [N] */
    void *out;                         /* [N,C] act: the stream behind the block */
    void *normed;                      /* [N,C] act: h^k */
    void *dnormed;                     /* [N,C] act: gradient of h^k */
};

/* Gradients of one module at a time. */
struct mtp_scratch {
    void *dboth;         /* [N,2C] act */
    void *dhalf, *dpart; /* [N,C] act */
};

/* Local. Host memory of the modules. Errors: STATUS_RESOURCE. */
enum status mtp_init(struct model *model) __attribute__((warn_unused_result));
void mtp_free(struct model *model);
void mtp_layout(struct model *model, struct arena *arena);

/* The main model has run on `batch` (host), its final norm is in model->final_norm. Forward and
 * loss of all modules, with gradients of their h^k. *loss (device) adds the sum of -log p over all
 * modules. Collective over ep. */
void mtp_forward(struct model *model, double *loss, const struct batch *batch, int64_t count,
                 int64_t sequence, const struct model_scale *scale);
/* Adds to model->dwork, the gradient of the final norm's output. Collective over ep. */
void mtp_backward(struct model *model, int64_t count, int64_t sequence,
                  const struct model_scale *scale);

#endif
