/* sample: tokens from a model, one after another. */
#ifndef TRAINER_SAMPLE_H
#define TRAINER_SAMPLE_H

#include "trainer/model.h"

struct sample_options {
    double temperature; /* 0: the most likely token */
    int64_t top_k;      /* 0: all */
    double top_p;       /* 1: all */
    uint64_t seed;
    int64_t eos_id; /* generation ends there; -1: never */
};

/* Collective (every rank runs the same tokens). ids[count] is the prompt (count >= 1) and has room
 * for count + tokens; returns how many tokens were appended. The model sees the last
 * model->sequence tokens. */
int64_t sample_tokens(struct model *model, int32_t *ids, int64_t count, int64_t tokens,
                      const struct sample_options *options);

#endif
