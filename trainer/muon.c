#include "trainer/muon.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/model/model.h"
#include "trainer/optimizer.h"

struct matrix {
    int64_t index, cost;
};

static int dearest_first(const void *a, const void *b)
{
    const struct matrix *x = a, *y = b;
    return x->cost != y->cost ? (x->cost < y->cost) - (x->cost > y->cost)
                              : (x->index > y->index) - (x->index < y->index);
}

static bool is_ours(const struct param *param, enum param_group group)
{
    return param->group == group && param->muon && !param->frozen;
}

/* Products of one step, short side s and long side l: s s l, s s s, s s l. */
static int64_t cost(const struct param *param)
{
    const int64_t a = param->shape[0], b = param->shape[1], side = a < b ? a : b;
    return side * side * (2 * (a + b - side) + side);
}

static int64_t scratch(const struct param *param)
{
    const int64_t a = param->shape[0], b = param->shape[1], side = a < b ? a : b;
    return a * b + 2 * side * side;
}

/* Each to the rank with least to do so far, the lowest of equals. */
static void assign(struct muon_plan *plan, const struct matrix *matrix, int64_t count, int ranks)
{
    for (int64_t i = 0; i < count; i++) {
        int least = 0;
        for (int r = 1; r < ranks; r++) {
            least = plan->next[r] < plan->next[least] ? r : least;
        }
        plan->owner[matrix[i].index] = least;
        plan->next[least] += matrix[i].cost;
    }
}

struct param_piece param_piece(const struct param *param, const struct zero *zero, int rank)
{
    const int64_t part = zero_find(zero, param->offset), begin = zero_first(zero, part, rank),
                  end = begin + zero->part[part].share, stop = param->offset + param->count;
    return (struct param_piece){.first = param->offset > begin ? param->offset : begin,
                                .last = stop < end ? stop : end};
}

static int64_t piece_count(const struct param *param, const struct zero *zero, int rank)
{
    const struct param_piece piece = param_piece(param, zero, rank);
    return piece.last > piece.first ? piece.last - piece.first : 0;
}

static void count_elements(struct muon_plan *plan, const struct params *params,
                           const struct zero *zero)
{
    const int rank = zero->comm->rank;
    int64_t before = -1;
    for (int64_t i = 0; i < params->count; i++) {
        const struct param *param = &params->table[i];
        const int owner = plan->owner[i];
        if (owner < 0) {
            continue;
        }
        assert(param->offset > before); /* what arrives in order of offset is in order of table */
        before = param->offset;
        plan->send[owner] += piece_count(param, zero, rank);
        for (int r = 0; r < zero->comm->size && owner == rank; r++) {
            plan->receive[r] += piece_count(param, zero, r);
        }
        const int64_t together = zero->parts > 1 ? param->count : 0,
                      room = owner == rank && plan->peers == NULL ? scratch(param) + together : 0;
        plan->scratch = room > plan->scratch ? room : plan->scratch;
    }
}

/* The most that any rank receives, so that all have the same room. */
static int64_t most_received(const struct muon_plan *plan, const struct params *params, int ranks)
{
    int64_t most = 0;
    for (int r = 0; r < ranks; r++) {
        int64_t own = 0;
        for (int64_t i = 0; i < params->count; i++) {
            own += plan->owner[i] == r ? params->table[i].count : 0;
        }
        most = own > most ? own : most;
    }
    return most;
}

/* Of a rank's matrices, `matrix` being all, the dearest first. */
static struct muon_load load_of(const struct muon_plan *plan, const struct params *params,
                                const struct matrix *matrix, int64_t count, int owner)
{
    const int64_t peers = plan->peers != NULL ? plan->peers->size : 1;
    struct muon_load load = {.received = plan->received};
    int64_t owned = 0;
    for (int64_t m = 0; m < count; m++) {
        const struct param *param = &params->table[matrix[m].index];
        const int64_t a = param->shape[0], b = param->shape[1], side = a < b ? a : b;
        if (plan->owner[matrix[m].index] == owner && owned++ % peers == 0) {
            load.matrices++;
            load.cost += matrix[m].cost;
            load.entries += a * b;
            load.squares += side * side;
        }
    }
    return load;
}

static void find_load(struct muon_plan *plan, const struct params *params,
                      const struct matrix *matrix, int64_t count, int ranks)
{
    for (int r = 0; r < ranks; r++) {
        const struct muon_load own = load_of(plan, params, matrix, count, r);
        plan->load = r == 0 || own.cost > plan->load.cost ? own : plan->load;
    }
}

/* Of this rank's matrices in the order of the table, where their pieces come; then the dearest
 * first. `matrix`: all, in that order. */
static enum status plan_turns(struct muon_plan *plan, const struct params *params,
                              const struct zero *zero, const struct matrix *matrix, int64_t count)
{
    const int64_t ranks = zero->comm->size, own = zero->comm->rank;
    int64_t *place = calloc((size_t)(params->count * ranks), sizeof *place);
    plan->order = calloc((size_t)count, sizeof *plan->order);
    plan->from = calloc((size_t)(count * ranks), sizeof *plan->from);
    plan->out = calloc(2 * (size_t)plan->peers->size, sizeof *plan->out);
    if (place == NULL || plan->order == NULL || plan->from == NULL || plan->out == NULL) {
        free(place);
        return status_fail(STATUS_RESOURCE, "out of memory for the turns of Muon's matrices");
    }
    plan->back = plan->out + plan->peers->size;
    plan->next[0] = 0;
    for (int64_t r = 1; r < ranks; r++) {
        plan->next[r] = plan->next[r - 1] + plan->receive[r - 1];
    }
    for (int64_t i = 0; i < params->count; i++) {
        for (int r = 0; r < ranks && plan->owner[i] == own; r++) {
            place[i * ranks + r] = ranks == 1 ? params->table[i].offset : plan->next[r];
            plan->next[r] += piece_count(&params->table[i], zero, r);
        }
    }
    for (int64_t m = 0; m < count; m++) {
        const int64_t i = matrix[m].index;
        const struct param *param = &params->table[i];
        const int64_t all = (param->shape[0] * param->shape[1] + 63) / 64 * 64,
                      room = scratch(param) - param->shape[0] * param->shape[1];
        plan->largest = all > plan->largest ? all : plan->largest;
        plan->scratch = room > plan->scratch ? room : plan->scratch;
        if (plan->owner[i] == own) {
            memcpy(plan->from + plan->owned * ranks, place + i * ranks,
                   (size_t)ranks * sizeof *place);
            plan->order[plan->owned++] = i;
        }
    }
    plan->scratch += 2 * plan->largest;
    free(place);
    return STATUS_OK;
}

enum status muon_plan_init(struct muon_plan *plan, const struct params *params,
                           enum param_group group, const struct zero *zero, struct comm *peers)
{
    const size_t ranks = (size_t)zero->comm->size;
    struct matrix *matrix = calloc((size_t)params->count + 1, sizeof *matrix);
    int64_t count = 0;
    *plan = (struct muon_plan){.peers = peers != NULL && peers->size > 1 ? peers : NULL};
    for (int64_t i = 0; i < params->count && matrix != NULL; i++) {
        if (is_ours(&params->table[i], group)) {
            matrix[count++] = (struct matrix){.index = i, .cost = cost(&params->table[i])};
        }
    }
    if (matrix != NULL && count == 0) {
        free(matrix);
        return STATUS_OK;
    }
    plan->owner = malloc((size_t)params->count * sizeof *plan->owner);
    plan->send = calloc(3 * ranks, sizeof *plan->send);
    if (matrix == NULL || plan->owner == NULL || plan->send == NULL) {
        free(matrix);
        return status_fail(STATUS_RESOURCE, "out of memory for the plan of Muon's matrices");
    }
    plan->receive = plan->send + ranks;
    plan->next = plan->receive + ranks;
    for (int64_t i = 0; i < params->count; i++) {
        plan->owner[i] = -1;
    }
    qsort(matrix, (size_t)count, sizeof *matrix, dearest_first);
    assign(plan, matrix, count, zero->comm->size);
    count_elements(plan, params, zero);
    plan->received = most_received(plan, params, zero->comm->size);
    find_load(plan, params, matrix, count, zero->comm->size);
    const enum status status =
        plan->peers != NULL ? plan_turns(plan, params, zero, matrix, count) : STATUS_OK;
    free(matrix);
    return status;
}

void muon_plan_free(struct muon_plan *plan)
{
    free(plan->owner);
    free(plan->send);
    free(plan->order);
    free(plan->from);
    free(plan->out);
    *plan = (struct muon_plan){0};
}

/* Where, in the packed order (by owner, then by offset), the pieces for each owner begin. */
static void rewind_pieces(struct muon_plan *plan, int ranks)
{
    plan->next[0] = 0;
    for (int r = 1; r < ranks; r++) {
        plan->next[r] = plan->next[r - 1] + plan->send[r - 1];
    }
}

/* Place of the next piece of a matrix with this owner: packed, or where the gradients lie when
 * there is nobody to send it to. */
static float *piece_place(struct model_group *group, int owner, const struct offload_piece *piece)
{
    if (group->zero.comm->size == 1) {
        return group->whole + piece->first;
    }
    float *place = group->reduced + group->muon.next[owner];
    group->muon.next[owner] += piece->count;
    return place;
}

/* A pass over this share's pieces, in table order. */
struct pass {
    struct model *model;
    enum param_group group;
    const struct muon *args;
    int64_t step;
    struct offload_walk walk;
};

/* The next of a part that is Muon's, and its owner. */
static const struct param *next_of(struct pass *pass, const struct offload_part *part,
                                   struct offload_piece *piece, int *owner)
{
    const struct model *model = pass->model;
    const struct param *param = NULL;
    do {
        param = offload_next(model, pass->group, part, &pass->walk, piece);
        *owner =
            param != NULL ? model->group[pass->group].muon.owner[param - model->params.table] : 0;
    } while (*owner < 0);
    return param;
}

static void momentum_part(void *context, const struct offload_part *part)
{
    struct pass *pass = context;
    struct model *model = pass->model;
    struct model_group *group = &model->group[pass->group];
    const struct param *param = NULL;
    struct offload_piece piece;
    int owner = 0;
    while ((param = next_of(pass, part, &piece, &owner)) != NULL) {
        float *place = piece_place(group, owner, &piece), *grad = group->shard + piece.at;
        struct muon own = *pass->args;
        own.moments = optimizer_moments(model, param, piece.first, pass->step);
        model->ops->muon_momentum(model->device, grad,
                                  optimizer_moment(model, part->moment1, piece.at - part->first),
                                  piece.count, own);
        if (place != grad) {
            model->ops->copy(model->device, place, grad, (size_t)piece.count * sizeof *grad);
        }
    }
}

static void update_part(void *context, const struct offload_part *part)
{
    struct pass *pass = context;
    struct model *model = pass->model;
    struct model_group *group = &model->group[pass->group];
    const struct param *param = NULL;
    struct offload_piece piece;
    int owner = 0;
    while ((param = next_of(pass, part, &piece, &owner)) != NULL) {
        struct muon own = *pass->args;
        own.weight_decay = param->decay ? own.weight_decay : 0.0F;
        own.scale = 0.2F * sqrtf((float)(param->shape[0] > param->shape[1] ? param->shape[0]
                                                                           : param->shape[1]));
        model->ops->muon_update(model->device, part->master + (piece.at - part->first),
                                optimizer_out(model, group, piece.first),
                                piece_place(group, owner, &piece), piece.count, own);
    }
    if (model->act == DTYPE_F32) {
        model_publish_part(model, pass->group, part);
    }
}

/* The pieces of a matrix, which came share by share, go to x, or back from there; next[rank]: where
 * in `whole` its piece from there is. */
static void copy_pieces(struct model *model, const struct model_group *group,
                        const struct param *param, float *x, const int64_t *next, bool back)
{
    for (int r = 0; r < group->zero.comm->size; r++) {
        const int64_t count = piece_count(param, &group->zero, r);
        float *piece = group->whole + next[r];
        if (count > 0) {
            model->ops->copy(model->device, back ? piece : x, back ? x : piece,
                             (size_t)count * sizeof *x);
        }
        x += count;
    }
}

/* Matrices whose pieces do not follow each other: the shares have several parts. */
static void orthogonalize_pieces(struct model *model, enum param_group g)
{
    struct model_group *group = &model->group[g];
    struct muon_plan *plan = &group->muon;
    const struct zero *zero = &group->zero;
    float *x = model->muon_scratch;
    plan->next[0] = 0;
    for (int r = 1; r < zero->comm->size; r++) {
        plan->next[r] = plan->next[r - 1] + plan->receive[r - 1];
    }
    for (int64_t i = 0; i < model->params.count; i++) {
        const struct param *param = &model->params.table[i];
        if (plan->owner[i] != zero->comm->rank) {
            continue;
        }
        copy_pieces(model, group, param, x, plan->next, false);
        model->ops->muon_orthogonalize(model->device,
                                       tensor_2d(x, DTYPE_F32, param->shape[0], param->shape[1]),
                                       x + param->count);
        copy_pieces(model, group, param, x, plan->next, true);
        for (int r = 0; r < zero->comm->size; r++) {
            plan->next[r] += piece_count(param, zero, r);
        }
    }
}

/* --- matrices that are divided --- */

/* Elements to each peer in the turn of matrices [first, first + peers) of the order, of which each
 * gets one, and of this rank's from each; which that is, NULL: none. */
static const struct param *turn_counts(const struct model *model, struct muon_plan *plan,
                                       int64_t first)
{
    const struct param *mine = NULL;
    for (int p = 0; p < plan->peers->size; p++) {
        const bool there = first + p < plan->owned;
        const struct param *param = there ? &model->params.table[plan->order[first + p]] : NULL;
        plan->out[p] = there ? param->count : 0;
        mine = p == plan->peers->rank ? param : mine;
    }
    for (int p = 0; p < plan->peers->size; p++) {
        plan->back[p] = mine != NULL ? mine->count : 0;
    }
    return mine;
}

/* This rank's parts of the turn's matrices, one behind the other, or back from there. */
static void copy_parts(struct model *model, const struct model_group *group, int64_t first,
                       float *parts, bool back)
{
    const struct muon_plan *plan = &group->muon;
    for (int64_t m = first; m < first + plan->peers->size && m < plan->owned; m++) {
        const struct param *param = &model->params.table[plan->order[m]];
        copy_pieces(model, group, param, parts, plan->from + m * group->zero.comm->size, back);
        parts += param->count;
    }
}

/* Parts that are columns: x[rows, cols] from the peers' parts, or the parts from x. */
static void copy_sides(struct model *model, const struct param *param, float *x, float *parts,
                       bool back)
{
    const int64_t rows = param->shape[0], cols = param->part[1];
    const struct tensor whole = tensor_2d(x, DTYPE_F32, rows, param->shape[1]);
    for (int64_t at = 0; at < param->shape[1]; at += cols, parts += rows * cols) {
        const struct tensor part = tensor_2d(parts, DTYPE_F32, rows, cols);
        model->ops->copy_columns(model->device, back ? part : whole, back ? 0 : at,
                                 back ? whole : part, back ? at : 0, cols);
    }
}

/* One turn. The matrix forms in one of two rooms; what travels takes the other, which is its
 * scratch in between. Rows come as they lie in it; columns come to the other and are put together.
 */
static void take_turn(struct model *model, struct model_group *group, int64_t first)
{
    struct muon_plan *plan = &group->muon;
    struct comm *peers = plan->peers;
    float *const x = model->muon_scratch, *const other = x + plan->largest;
    const struct param *param = turn_counts(model, plan, first);
    const bool columns = param != NULL && param->part[1] < param->shape[1];
    float *const sent = columns ? x : other, *const come = columns ? other : x;
    copy_parts(model, group, first, sent, false);
    comm_device_all_to_all(peers, come, plan->back, sent, plan->out, sizeof *x);
    if (columns) {
        copy_sides(model, param, x, other, false);
    }
    if (param != NULL) {
        model->ops->muon_orthogonalize(
            model->device, tensor_2d(x, DTYPE_F32, param->shape[0], param->shape[1]), other);
    }
    if (columns) {
        copy_sides(model, param, x, other, true);
    }
    comm_device_all_to_all(peers, sent, plan->out, come, plan->back, sizeof *x);
    copy_parts(model, group, first, sent, true);
}

static void orthogonalize(struct model *model, enum param_group g)
{
    struct model_group *group = &model->group[g];
    const struct comm *comm = group->zero.comm;
    int64_t at = 0;
    for (int64_t m = 0; group->muon.peers != NULL && m < group->muon.owned;
         m += group->muon.peers->size) {
        take_turn(model, group, m);
    }
    if (group->muon.peers != NULL) {
        return;
    }
    if (group->zero.parts > 1) {
        orthogonalize_pieces(model, g);
        return;
    }
    for (int64_t i = 0; i < model->params.count; i++) {
        const struct param *param = &model->params.table[i];
        if (group->muon.owner[i] != comm->rank) {
            continue;
        }
        float *x = group->whole + (comm->size == 1 ? param->offset : at);
        at += param->count;
        model->ops->muon_orthogonalize(model->device,
                                       tensor_2d(x, DTYPE_F32, param->shape[0], param->shape[1]),
                                       model->muon_scratch);
    }
}

void muon_step(struct model *model, enum param_group g, const struct muon *args, int64_t step)
{
    struct model_group *group = &model->group[g];
    struct muon_plan *plan = &group->muon;
    struct comm *comm = group->zero.comm;
    struct pass momentum = {.model = model, .group = g, .args = args, .step = step},
                update = momentum;
    if (plan->owner == NULL) {
        return;
    }
    optimizer_decode(model, g);
    rewind_pieces(plan, comm->size);
    offload_pass(model, g, OFFLOAD_MOMENT1, OFFLOAD_MOMENT1, momentum_part, &momentum);
    if (comm->size > 1) {
        comm_device_all_to_all(comm, group->whole, plan->receive, group->reduced, plan->send,
                               sizeof *group->whole);
    }
    orthogonalize(model, g);
    if (comm->size > 1) {
        comm_device_all_to_all(comm, group->reduced, plan->send, group->whole, plan->receive,
                               sizeof *group->whole);
    }
    rewind_pieces(plan, comm->size);
    offload_pass(model, g, OFFLOAD_MASTER, OFFLOAD_MASTER, update_part, &update);
}
