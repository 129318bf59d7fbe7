/* dataset: a token file to evaluate on: the store and its loader, checked against the config; its
 * documents are packed where data.packing says so. Training reads sources.h.
 */
#ifndef TRAINER_DATASET_H
#define TRAINER_DATASET_H

#include "data/loader.h"
#include "parallel/comm.h"
#include "trainer/config/config.h"

struct dataset {
    struct token_store store;
    struct row_packing packing; /* zeroed without */
    struct loader loader;
};

/* Collective over `world`. Errors, the same on every rank: STATUS_DATA (file, or a vocabulary
 * larger than the model's), STATUS_IO. */
enum status dataset_open(struct dataset *dataset, const struct config *config, const char *path,
                         bool shuffle, struct comm *world) __attribute__((warn_unused_result));
void dataset_close(struct dataset *dataset); /* accepts a zeroed one */

#endif
