/* huggingface: what a model of a config is called and shaped like in the files of the Hugging Face
 * world, and its config.json.
 *
 * Names are the published ones, per expert; they are also the names in our checkpoints.
 */
#ifndef TRAINER_HUGGINGFACE_H
#define TRAINER_HUGGINGFACE_H

#include <jansson.h>

#include "kernels/base/tensor.h"
#include "trainer/config/config.h"

enum { HF_NAME_BYTES = 128 };

enum hf_kind {
    HF_PLAIN,  /* embeddings, head, norms, router, eh_proj */
    HF_LINEAR, /* what the FP8 releases store as float8 with block scales */
    HF_BIAS    /* e_score_correction_bias: float32, no parameter */
};

struct hf_tensor {
    char name[HF_NAME_BYTES];
    enum hf_kind kind;
    int ndim;
    int64_t shape[4];
};

/* All tensors of the whole model, in published order. */
struct hf_tensors {
    struct hf_tensor *tensor; /* [count] owned */
    int64_t count;
    int64_t experts; /* of a layer */
};
enum status hf_tensors_init(struct hf_tensors *tensors, const struct config *config)
    __attribute__((warn_unused_result));
void hf_tensors_free(struct hf_tensors *tensors); /* accepts a zeroed one */

/* Where transformers 5 keeps a tensor when it does not write the published names: in `fused`, a
 * stack over the experts. */
struct hf_home {
    char name[HF_NAME_BYTES];
    int64_t expert;  /* -1: not stacked, only called otherwise */
    int part, parts; /* of the rows of one expert: gate 0 of 2, up 1 of 2, down 0 of 1 */
    bool exists;     /* there is such a home */
};
struct hf_home hf_fused_home(const char *name);

/* Layer number in "model.layers.N.", -1: none. */
int64_t hf_layer(const char *name);
/* Tensors that old files hold and nobody reads: rotary_emb.inv_freq. */
bool hf_is_ignored(const char *name);
/* Of a module of multi-token prediction, a copy of the embedding or the head: the main one's name,
 * NULL: it is none. */
const char *hf_copied_from(const char *name, int64_t layers);

/* config.json in the form that every reader knows (rope_theta, rope_scaling, torch_dtype). `dtype`
 * is that of the weights; fp8: float8 blocks, the rest in `dtype`. `before`: the config.json of an
 * import, for the token ids, or NULL. *text owned by caller. Errors: STATUS_RESOURCE. */
enum status hf_config_text(const struct config *config, enum dtype dtype, bool fp8,
                           const json_t *before, char **text) __attribute__((warn_unused_result));

#endif
