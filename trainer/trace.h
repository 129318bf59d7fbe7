/* trace: debug.trace, a record of what training computes, to find where two runs part
 * (docs/trace.md).
 *
 * Of every traced step: per micro-batch the tensors of trainer/model/probe.h, then the gradient of
 * every parameter (summed over the global batch, before clipping; in FP8 times its power of two),
 * then every master weight and selection bias after the update; before the first step these too,
 * as those of the step before. Rank 0 writes one file in global numbers: micro-batches of the
 * global batch, experts of the model, parameters by name; so the layout does not show. Memory: what
 * is kept of one micro-batch, on each rank, and as much on rank 0; of parameters 4 MiB or the
 * largest of them. A function that gets NULL does nothing.
 */
#ifndef TRAINER_TRACE_H
#define TRAINER_TRACE_H

#include "checkpoints/trace_file.h"
#include "trainer/model/model.h"

struct trace_list {
    struct trace_record *record; /* [record_room] owned */
    char *values;                /* [value_room] owned */
    int64_t records, record_room, bytes, value_room;
};

struct trace {
    struct model *model;      /* borrowed */
    struct trace_file *file;  /* owned; rank 0 */
    struct params all;        /* owned: of all ranks, in the order of the file's names */
    int64_t *local;           /* [all.count] owned: of model->params, -1: not on this rank */
    int64_t *rows;            /* [2 * ranks] owned: scratch of an exchange */
    int64_t *sizes;           /* [2 * ranks] owned: records and bytes of each rank */
    struct trace_list own;    /* of the micro-batch that runs */
    struct trace_list others; /* rank 0: of another rank */
    void *staging;            /* [staging_bytes] owned: a tensor on the host */
    size_t staging_bytes;
    enum status status;  /* of this rank, told at the next exchange */
    struct probe probe;  /* of the model, while a traced step runs */
    int64_t step;        /* that runs */
    int64_t last, begun; /* to trace; whether any was */
    int64_t written;     /* bytes, the same on every rank */
    bool on, full;       /* this step is traced; debug.trace_mib is reached */
};

/* Collective. Makes the file; one that is there is renamed to FILE.old-N first. `done`: steps
 * before the first that will run. Errors, agreed: STATUS_IO, STATUS_RESOURCE. */
enum status trace_open(struct trace *trace, struct model *model, int64_t done)
    __attribute__((warn_unused_result));
/* Accepts a zeroed one. What could not be written is warned of. */
void trace_close(struct trace *trace);

/* A step: begin, then for each micro-batch of this rank model_run and unit (its number in the
 * global batch), then gradients when they are reduced, then weights when they are updated.
 * Collective. Errors, agreed: STATUS_IO, STATUS_RESOURCE; those of unit come with gradients. */
enum status trace_begin(struct trace *trace, int64_t step) __attribute__((warn_unused_result));
void trace_unit(struct trace *trace, int64_t unit);
enum status trace_gradients(struct trace *trace) __attribute__((warn_unused_result));
enum status trace_weights(struct trace *trace) __attribute__((warn_unused_result));

#endif
