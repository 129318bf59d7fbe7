/* save: one checkpoint on its way to the disk, in phases, so that a thread beside the training can
 * do the writing: the phases that all ranks do together have no file in them that could make anyone
 * wait, the phases with files speak to nobody.
 *
 *   save_begin    collective  room on the disk, a name for the folder
 *   save_write    any thread  this rank's shard: written, synced, read back
 *   save_gather   collective  did all ranks write? what they wrote, to rank 0
 *   save_publish  any thread  rank 0: manifest, the folder's name, older checkpoints go
 *   save_end      collective  did it work? what is left of a failure goes
 *
 * Once its folder has its name, a checkpoint is saved: that LATEST could not be written then, or an
 * older one not be deleted, is told on stderr by save_end, and tried again with the next save.
 *
 * Each is called once, in this order, on every rank, whatever came before: after a failure the
 * phases with files do nothing, and save_end gives it to everybody. One thread at a time has the
 * struct. checkpoint_save (checkpoint.h) calls all five in a row; background.h spreads them over
 * steps.
 */
#ifndef CHECKPOINTS_SAVE_H
#define CHECKPOINTS_SAVE_H

#include "checkpoints/checkpoint.h"
#include "checkpoints/manifest.h"
#include "checkpoints/steps.h"

struct folder;

enum { SAVE_MESSAGE_BYTES = 2048 };

struct save {
    struct comm *comm; /* borrowed */
    int64_t step;
    int keep;                              /* newest checkpoints kept; 0: it is beside no others */
    const char *state;                     /* borrowed until save_end: rank 0's */
    const struct checkpoint_slice *slices; /* [slice_count] borrowed until save_write returns */
    int64_t slice_count;
    char root[STEPS_PATH_BYTES];
    char work[STEPS_PATH_BYTES];  /* root/.tmp-STEP-PID, where it is made */
    char place[STEPS_PATH_BYTES]; /* root/STEP, where it will be */
    struct folder *alone;         /* borrowed: how it gets there when beside no others; or NULL */
    struct manifest own, all;     /* this rank's part; rank 0's whole */
    char *text;                   /* owned: `own` as text */
    char *parts;                  /* owned, rank 0: every rank's text, one after the other */
    enum status status;           /* of all phases so far, here */
    char message[SAVE_MESSAGE_BYTES]; /* its words: status_message() is each thread's own */
    char note[SAVE_MESSAGE_BYTES];    /* rank 0: what failed behind the publication, or "" */
};

/* Bytes of memory that save_write of so many bytes of slices takes at most, for blocks on their
 * way to the disk. */
size_t save_block_bytes(size_t bytes);
/* Collective over comm. As checkpoint_save; nothing may be left in *save. root: copied. */
void save_begin(struct save *save, struct comm *comm, const char *root, int64_t step,
                const char *state, const struct checkpoint_slice *slices, int64_t slice_count,
                int keep_last);
/* The same into a folder beside no others, as checkpoint_write. */
void save_begin_alone(struct save *save, struct comm *comm, struct folder *folder, int64_t step,
                      const char *state, const struct checkpoint_slice *slices,
                      int64_t slice_count);
void save_write(struct save *save);   /* Local */
void save_gather(struct save *save);  /* Collective */
void save_publish(struct save *save); /* Local */
/* Collective. The same status and message on every rank: that of checkpoint_save. Frees. */
enum status save_end(struct save *save) __attribute__((warn_unused_result));

#endif
