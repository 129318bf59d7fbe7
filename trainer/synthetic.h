/* synthetic: random tokens in memory as a source of batches, where what they say does not matter:
 * for bench and verify. */
#ifndef TRAINER_SYNTHETIC_H
#define TRAINER_SYNTHETIC_H

#include "data/mixture.h"
#include "trainer/config/config.h"

struct synthetic {
    struct token_store store;
    struct mixture_source source; /* the store, in file order */
    struct mixture mixture;       /* of it alone */
    uint32_t *tokens;             /* owned */
    int64_t document[2];          /* offsets of the one document */
};

/* Samples for four global batches. Must not be moved afterwards. Errors: STATUS_RESOURCE. */
enum status synthetic_init(struct synthetic *synthetic, const struct config *config)
    __attribute__((warn_unused_result));
void synthetic_free(struct synthetic *synthetic); /* accepts a zeroed one */

#endif
