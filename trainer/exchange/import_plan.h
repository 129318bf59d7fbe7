/* import_plan: which bytes of which files make up each tensor of a checkpoint. Private to import*.c
 * and upcycle.c. */
#ifndef TRAINER_IMPORT_PLAN_H
#define TRAINER_IMPORT_PLAN_H

#include "checkpoints/checkpoint.h"
#include "checkpoints/safetensors.h"
#include "trainer/exchange/huggingface.h"
#include "trainer/exchange/import.h"

enum part_kind {
    PART_BYTES,   /* a range of a tensor */
    PART_COLUMNS, /* columns of a matrix, times a number (upcycling) */
    PART_NORMAL   /* fresh random numbers (upcycling) */
};

/* One tensor to store. */
struct part {
    struct import_plan *plan; /* borrowed: of which it is */
    char name[HF_NAME_BYTES];
    enum dtype dtype;
    int ndim;
    int64_t shape[4];
    enum part_kind kind;
    const struct safetensors_tensor *from; /* borrowed; NULL for PART_NORMAL */
    int64_t first;                         /* byte of `from` */
    int64_t column;                        /* PART_COLUMNS: first of `from` */
    float factor;                          /* PART_COLUMNS: of values; PART_NORMAL: deviation */
    uint64_t key;                          /* PART_NORMAL */
    int64_t group;                         /* PART_NORMAL: rows that are the same */
    bool copied;            /* modules of multi-token prediction hold copies, to be compared */
    int64_t bad;            /* values that are not finite, so far */
    unsigned char carry[8]; /* of a value that two blocks share */
};

struct import_plan {
    const struct import_options *options; /* borrowed */
    struct config config;
    struct safetensors source;
    json_t *json;      /* config.json, owned */
    struct part *part; /* [parts] owned */
    int64_t parts;
    bool *used;    /* [source.tensors] owned: has a place in the checkpoint */
    char *scratch; /* owned */
    char *note;    /* owned or NULL: what the user should know */
};
#define IMPORT_SCRATCH_BYTES ((size_t)8 << 20)

/* Local. Parts of a model as published or fused, every tensor of the source used once. Errors:
 * STATUS_DATA. */
enum status import_plan_published(struct import_plan *plan) __attribute__((warn_unused_result));
/* Local. Parts of the Mixtral that a dense model becomes (upcycle.c). */
enum status import_plan_upcycled(struct import_plan *plan) __attribute__((warn_unused_result));

/* The next part, of `like`'s name and shape, zero otherwise. */
struct part *import_plan_add(struct import_plan *plan, const struct hf_tensor *like);
/* Room for `count` more parts. */
enum status import_plan_reserve(struct import_plan *plan, int64_t count)
    __attribute__((warn_unused_result));
const struct safetensors_tensor *import_plan_use(struct import_plan *plan, const char *name);
/* Names that are missing, collected by import_plan_miss, and those not used: one line, at most ten
 * of them. */
struct name_list {
    char text[1200];
    int64_t count, shown;
};
void name_list_add(struct name_list *list, const char *name, int64_t most);
enum status import_plan_complete(const struct import_plan *plan, const struct name_list *missing)
    __attribute__((warn_unused_result));
enum status import_plan_shape(const struct import_plan *plan, const struct safetensors_tensor *from,
                              const int64_t *shape, int ndim) __attribute__((warn_unused_result));
/* Bytes of a part. */
int64_t import_part_bytes(const struct part *part);

#endif
