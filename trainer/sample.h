/* sample: tokens from a model, one after another, for several sequences at once, with a key/value
 * cache. */
#ifndef TRAINER_SAMPLE_H
#define TRAINER_SAMPLE_H

#include "trainer/model/model.h"

struct sample_options {
    double temperature; /* 0: the most likely token */
    int64_t top_k;      /* 0: all */
    double top_p;       /* 1: all */
    uint64_t seed;      /* of every sequence: what is drawn depends on seed and token number only */
    int64_t eos_id;     /* a sequence ends there; -1: never */
    int64_t context;    /* tokens the model sees at most, <= model->sequence */
};

/* One prompt and what follows it. */
struct sample_sequence {
    int32_t *ids;  /* borrowed: the prompt, with room for the tokens to come */
    int64_t count; /* >= 1; grows */
};

/* Collective over the world (every rank runs the same tokens). Appends up to `tokens` tokens to
 * each sequence, none of which depends on the other sequences. When a context would exceed
 * options->context, its older half is dropped and the rest computed again, from position 0. At
 * most model->sequence sequences. Errors: STATUS_RESOURCE. */
enum status sample_tokens(struct model *model, struct sample_sequence *sequences, int64_t count,
                          int64_t tokens, const struct sample_options *options)
    __attribute__((warn_unused_result));

#endif
