/* import: weights and config of a Hugging Face folder become a checkpoint of ours.
 *
 * Every tensor keeps its dtype and its bits: f32, bf16, f16, or float8 codes with their scales. A
 * byte is read once, by one of the ranks (upcycling reads an MLP once per copy), and never more
 * than blocks of it are in memory.
 */
#ifndef TRAINER_IMPORT_H
#define TRAINER_IMPORT_H

#include "parallel/comm.h"

struct import_options {
    const char *from, *to;
    /* Upcycling: a dense model becomes a Mixtral of `upcycle` x `split` experts, `top_k` x `split`
     * of them active. upcycle 0: none. */
    int64_t upcycle, top_k, split;
    char *const *overrides; /* key=value */
    int override_count;
};

struct import_figures {
    int64_t tensors, bytes; /* stored, all ranks */
    double seconds;
};

/* Collective. Errors, agreed: STATUS_USAGE (config, `to` exists), STATUS_DATA (what the folder
 * holds), STATUS_IO. `say` hears, on rank 0, what the user should know. */
enum status import_run(struct comm *world, const struct import_options *options,
                       struct import_figures *figures, void (*say)(const char *line))
    __attribute__((warn_unused_result));

#endif
