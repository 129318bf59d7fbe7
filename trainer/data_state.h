/* data_state: where a run stands in its data: a few numbers per source, `data` of a checkpoint's
 * state.json.
 *
 * The mixture counts its samples from an origin (mixture.h): the start of the run, or where its
 * data settings last changed. The origin goes on being saved as it is, so that a run that was
 * stopped sees what one that was not would have seen; the places of now are what a changed mixture
 * starts from.
 */
#ifndef TRAINER_DATA_STATE_H
#define TRAINER_DATA_STATE_H

#include <jansson.h>

#include "data/mixture.h"

enum { DATA_PATH_BYTES = 256 };

struct data_source_state {
    char path[DATA_PATH_BYTES]; /* as data_state_path keeps it */
    uint64_t fingerprint;       /* of samples of its contents; 0: not known */
    uint64_t contents;          /* of all of them (token_store_contents); 0: not known */
    struct loader_place origin, now;
};

struct data_state {
    int64_t step, position, tokens; /* of the origin: steps, samples and tokens before it */
    int64_t count;                  /* of sources; 0: a checkpoint that does not say */
    struct data_source_state source[MIXTURE_SOURCES];
};

/* A source's path, or its end where it is long: whole characters. */
void data_state_path(char out[DATA_PATH_BYTES], const char *path);

/* Whether the same is known of the contents of two: of all, or, where a checkpoint has only these,
 * of samples. */
bool data_state_same(const struct data_source_state *a, const struct data_source_state *b);

/* A new object, the caller's; NULL: out of memory. */
json_t *data_state_write(const struct data_state *state);
/* From what data_state_write made; NULL: count 0. False: malformed. */
bool data_state_read(const json_t *json, struct data_state *state);

/* Of a token file's contents, whatever its name and age: its sizes, and blocks spread evenly over
 * its tokens, loss mask and documents. Never 0. Errors: token_store_status; STATUS_RESOURCE. */
enum status data_fingerprint(const struct token_store *store, uint64_t *fingerprint)
    __attribute__((warn_unused_result));

#endif
