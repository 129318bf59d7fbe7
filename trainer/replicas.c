#define _DEFAULT_SOURCE
#include "trainer/replicas.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/base/hash.h"

enum { CHUNK = 1 << 16, HOST_BYTES = 64, MOST_NAMED = 8 };

/* Memory of the device that several ranks hold. */
struct region {
    const char *name;
    struct comm *comm; /* they */
    const char *data;
    enum dtype dtype;
    int64_t count;   /* elements */
    int64_t columns; /* of the tensor, for coordinates */
};

static uint64_t hash_region(const struct model *model, const struct region *region)
{
    uint8_t chunk[CHUNK];
    const size_t bytes = (size_t)region->count * dtype_bytes(region->dtype);
    uint64_t both[2] = {0};
    for (size_t at = 0; at < bytes; at += CHUNK) {
        const size_t here = bytes - at < CHUNK ? bytes - at : CHUNK;
        model->ops->download(model->device, chunk, region->data + at, here);
        both[1] = hash_bytes(chunk, here);
        both[0] = hash_bytes(both, sizeof both);
    }
    return both[0];
}

/* Collective over the region's ranks: whether all have the same in it. */
static bool all_equal(const struct model *model, const struct region *region)
{
    const int64_t hash = (int64_t)(hash_region(model, region) >> 1);
    int64_t bounds[2] = {hash, -hash};
    comm_all_reduce(region->comm, bounds, 2, DTYPE_I64, REDUCE_MAX);
    return bounds[0] == -bounds[1];
}

static struct region group_region(const struct model *model, enum param_group g)
{
    const struct model_group *group = &model->group[g];
    return (struct region){.comm = group->zero.comm,
                           .data = group->weights,
                           .dtype = model->act,
                           /* gathered weights have no copies */
                           .count = group->gathered.on ? 0 : model->params.elements[g],
                           .columns = 1};
}

/* Of all blocks, on every rank of every stage. */
static struct region bias_region(const struct model *model)
{
    const int64_t experts = model->arch.experts,
                  blocks = model->router_bias != NULL ? architecture_moe_blocks(&model->arch) : 0;
    return (struct region){.name = "e_score_correction_bias of [router, expert]",
                           .comm = model->mesh->world,
                           .data = (const char *)model->router_bias,
                           .dtype = DTYPE_F32,
                           .count = blocks * experts,
                           .columns = experts};
}

/* --- which tensor, whose copy, where in it --- */

/* Collective. The first tensor of a group that differs; false: none does, what lies between them
 * does. */
static bool find_tensor(const struct model *model, enum param_group g, struct region *found)
{
    for (int64_t i = 0; i < model->params.count; i++) {
        const struct param *param = &model->params.table[i];
        if (param->group != g || model->group[g].gathered.on) {
            continue;
        }
        struct region region = group_region(model, g);
        region.name = param->name;
        region.data += (size_t)param->offset * dtype_bytes(region.dtype);
        region.count = param->count;
        region.columns = param->shape[param->ndim - 1];
        if (!all_equal(model, &region)) {
            *found = region;
            return true;
        }
    }
    return false;
}

struct copy {
    uint64_t hash;
    int32_t rank; /* of the world */
    char host[HOST_BYTES];
};

static int holders(const struct copy *copies, int size, uint64_t hash)
{
    int count = 0;
    for (int r = 0; r < size; r++) {
        count += copies[r].hash == hash;
    }
    return count;
}

/* Of the group: a rank that has what most have, and the first that has not. */
static void choose(const struct copy *copies, int size, int *usual, int *odd)
{
    *usual = *odd = 0;
    for (int r = 1; r < size; r++) {
        if (holders(copies, size, copies[r].hash) > holders(copies, size, copies[*usual].hash)) {
            *usual = r;
        }
    }
    while (copies[*odd].hash == copies[*usual].hash) {
        (*odd)++;
    }
}

/* Collective. The first element in which the two ranks' copies differ, the same everywhere. */
static int64_t find_element(const struct model *model, const struct region *region, int usual,
                            int odd)
{
    uint8_t theirs[CHUNK], own[CHUNK];
    const int64_t width = (int64_t)dtype_bytes(region->dtype), step = CHUNK / width;
    for (int64_t first = 0; first < region->count; first += step) {
        const int64_t count = region->count - first < step ? region->count - first : step;
        int64_t at = 0;
        model->ops->download(model->device, own, region->data + first * width,
                             (size_t)(count * width));
        memcpy(theirs, own, (size_t)(count * width));
        comm_broadcast(region->comm, theirs, (size_t)(count * width), usual);
        while (at < count && memcmp(theirs + at * width, own + at * width, (size_t)width) == 0) {
            at++;
        }
        comm_broadcast(region->comm, &at, sizeof at, odd);
        if (at < count) {
            return first + at;
        }
    }
    return 0;
}

/* Collective. */
static double value_of(const struct model *model, const struct region *region, int64_t at, int rank)
{
    union {
        float number;
        uint16_t bits;
    } value = {0};
    const size_t width = dtype_bytes(region->dtype);
    model->ops->download(model->device, &value, region->data + (size_t)at * width, width);
    comm_broadcast(region->comm, &value, sizeof value, rank);
    return (double)(region->dtype == DTYPE_F32 ? value.number : bf16_to_float(value.bits));
}

static void name_ranks(char *out, size_t bytes, const struct copy *copies, int size, uint64_t usual)
{
    int used = 0, named = 0;
    for (int r = 0; r < size && (size_t)used < bytes; r++) {
        if (copies[r].hash != usual && named++ < MOST_NAMED) {
            used += snprintf(out + used, bytes - (size_t)used, "%srank %d (%s)",
                             named > 1 ? ", " : "", copies[r].rank, copies[r].host);
        }
    }
    if (named > MOST_NAMED && (size_t)used < bytes) {
        snprintf(out + used, bytes - (size_t)used, " and %d more", named - MOST_NAMED);
    }
}

/* Collective over the region's ranks. */
static enum status tell(const struct replicas *replicas, int64_t step, const struct region *region)
{
    const struct model *model = replicas->model;
    struct comm *comm = region->comm;
    struct copy own = {.hash = hash_region(model, region), .rank = comm->world_rank},
                *copies = calloc((size_t)comm->size, sizeof *copies);
    char others[512] = "";
    int usual = 0, odd = 0;
    TRY(comm_agree(comm, copies != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory"),
                   NULL));
    gethostname(own.host, sizeof own.host - 1);
    comm_all_gather(comm, copies, &own, sizeof own);
    choose(copies, comm->size, &usual, &odd);
    const int64_t at = find_element(model, region, usual, odd);
    const double right = value_of(model, region, at, usual),
                 wrong = value_of(model, region, at, odd);
    const int most = holders(copies, comm->size, copies[usual].hash);
    name_ranks(others, sizeof others, copies, comm->size, copies[usual].hash);
    const enum status status = status_fail(
        STATUS_DIVERGED,
        "step %lld: copies of %s differ: at [%lld, %lld] %.9g on %s, %.9g on %d of %d ranks (rank "
        "%d, %s)%s; bad memory or a bad link there, or a defect. They were equal behind step %lld; "
        "the same command resumes from the last checkpoint, made of equal ones",
        (long long)step, region->name, (long long)(at / region->columns),
        (long long)(at % region->columns), wrong, others, right, most, comm->size,
        copies[usual].rank, copies[usual].host,
        2 * most == comm->size ? ": either may be wrong" : "", (long long)replicas->equal);
    free(copies);
    return status;
}

enum status replicas_check(struct replicas *replicas, int64_t step)
{
    struct model *model = replicas->model;
    const struct region bias = bias_region(model);
    enum status status = all_equal(model, &bias) ? STATUS_OK : tell(replicas, step, &bias);
    for (int g = 0; g < model->params.groups; g++) {
        const struct region group = group_region(model, (enum param_group)g);
        struct region first;
        TRY(comm_agree(model->mesh->world, status,
                       NULL)); /* groups may differ in what they found */
        if (!all_equal(model, &group) && find_tensor(model, (enum param_group)g, &first)) {
            status = tell(replicas, step, &first);
        }
    }
    TRY(comm_agree(model->mesh->world, status, NULL));
    replicas->equal = step;
    return STATUS_OK;
}

void replicas_flip(struct model *model, enum fault_flip flip)
{
    enum { BIT = 0x10 };
    const struct model_group *group = &model->group[PARAM_DENSE];
    const struct comm *comm = group->zero.comm;
    int64_t at = 0; /* of the first tensor that the next rank has some of: its first there */
    for (int64_t i = 0; i < model->params.count; i++) {
        const struct param *param = &model->params.table[i];
        const struct param_piece piece =
            param_piece(param, &group->zero, (comm->rank + 1) % comm->size);
        if (param->group == PARAM_DENSE && !group->gathered.on && piece.first < piece.last) {
            at = piece.first;
            break;
        }
    }
    char *where = flip == FAULT_FLIP_BIAS
                      ? (char *)model->router_bias
                      : (char *)group->weights + (size_t)at * dtype_bytes(model->act);
    uint8_t bits = 0;
    if (flip == FAULT_NO_FLIP || where == NULL) {
        return;
    }
    model->ops->download(model->device, &bits, where, 1);
    bits ^= BIT;
    model->ops->upload(model->device, where, &bits, 1);
}
