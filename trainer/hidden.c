#include "trainer/hidden.h"

#include <stdlib.h>
#include <string.h>

/* --- spans of time --- */

static int by_begin(const void *a, const void *b)
{
    const struct hidden_span *x = a, *y = b;
    return x->begin < y->begin ? -1 : x->begin > y->begin;
}

/* Sorts them and makes one of those that touch; returns how many are left, *length their sum. */
static int64_t merge(struct hidden_span *span, int64_t count, int64_t *length)
{
    int64_t left = 0;
    qsort(span, (size_t)count, sizeof *span, by_begin);
    *length = 0;
    for (int64_t i = 0; i < count; i++) {
        if (span[i].end <= span[i].begin) {
            continue;
        }
        if (left > 0 && span[i].begin <= span[left - 1].end) {
            struct hidden_span *last = &span[left - 1];
            last->end = span[i].end > last->end ? span[i].end : last->end;
        } else {
            span[left++] = span[i];
        }
    }
    for (int64_t i = 0; i < left; i++) {
        *length += span[i].end - span[i].begin;
    }
    return left;
}

struct hidden hidden_times(struct hidden_span *way, int64_t ways, struct hidden_span *call,
                           int64_t calls)
{
    int64_t under_way = 0, in_calls = 0, both = 0;
    ways = merge(way, ways, &under_way);
    calls = merge(call, calls, &in_calls);
    for (int64_t w = 0, c = 0; w < ways && c < calls;) {
        const int64_t begin = way[w].begin > call[c].begin ? way[w].begin : call[c].begin,
                      end = way[w].end < call[c].end ? way[w].end : call[c].end;
        both += end > begin ? end - begin : 0;
        if (way[w].end < call[c].end) {
            w++;
        } else {
            c++;
        }
    }
    return (struct hidden){.known = true,
                           .hidden = (double)(under_way - both) / 1e6,
                           .exposed = (double)both / 1e6,
                           .idle = (double)(in_calls - both) / 1e6};
}

/* --- of all ranks --- */

struct measure {
    const struct spans *spans; /* borrowed */
    int64_t count, offset_ns;
    bool known;
    /* owned, each with room for twice the spans: an operation is one, and so is its start */
    struct hidden_span *way, *call;
    struct hidden_span *own; /* of one group, while it is asked */
    int64_t ways, calls;
};

/* NOTE: one without a name is being added, by the writer's thread. */
static bool communicates(const struct span *span)
{
    return span->name != NULL && span->kind >= SPAN_MESSAGE;
}

static struct hidden_span on_clock(const struct measure *m, const struct span *span)
{
    return (struct hidden_span){span->begin_ns - m->offset_ns, span->end_ns - m->offset_ns};
}

/* What this rank has of the group's operations, in the order in which they began. */
static int64_t operations_of(const struct measure *m, const struct comm *group)
{
    int64_t count = 0;
    for (int64_t i = 0; i < m->count; i++) {
        const struct span *span = &m->spans->span[i];
        if (communicates(span) && span->kind == SPAN_MESSAGE && span->peer < 0 &&
            span->ranks == group->size && strcmp(span->group, group->name) == 0) {
            m->own[count++] = on_clock(m, span);
        }
    }
    qsort(m->own, (size_t)count, sizeof *m->own, by_begin);
    return count;
}

/* Collective over the group. */
static void add_group(struct measure *m, struct comm *group)
{
    const int64_t count = operations_of(m, group);
    int64_t most[2] = {count, -count};
    comm_all_reduce(group, most, 2, DTYPE_I64, REDUCE_MAX);
    if (most[0] != -most[1]) {
        m->known = false;
        return;
    }
    int64_t *last = (int64_t *)(void *)(m->own + count);
    for (int64_t i = 0; i < count; i++) {
        last[i] = m->own[i].begin;
    }
    comm_all_reduce(group, last, count, DTYPE_I64, REDUCE_MAX);
    for (int64_t i = 0; i < count; i++) {
        m->way[m->ways++] = (struct hidden_span){last[i], m->own[i].end};
    }
}

/* A message between two ranks, as one of them has it. */
struct letter {
    int64_t peer, sends; /* in the group; -1: none. 1: this rank sends it, 0: it receives it */
    struct hidden_span span;
};

static void letters_of(const struct measure *m, const struct comm *group, struct letter *letter)
{
    for (int64_t i = 0; i < m->count; i++) {
        const struct span *span = &m->spans->span[i];
        if (communicates(span) && span->kind != SPAN_WAIT && span->peer >= 0 &&
            strcmp(span->group, group->name) == 0) {
            *letter++ = (struct letter){span->peer, span->kind == SPAN_CALL, on_clock(m, span)};
        }
    }
}

static int64_t count_letters(const struct measure *m, const struct comm *group)
{
    int64_t count = 0;
    for (int64_t i = 0; i < m->count; i++) {
        const struct span *span = &m->spans->span[i];
        count += communicates(span) && span->kind != SPAN_WAIT && span->peer >= 0 &&
                 strcmp(span->group, group->name) == 0;
    }
    return count;
}

/* The next one from `at` on to or from the peer; `end`: there is none. */
static const struct letter *next(const struct letter *at, const struct letter *end, int64_t peer,
                                 int64_t sends)
{
    while (at < end && (at->peer != peer || at->sends != sends)) {
        at++;
    }
    return at;
}

/* What this rank sends to the other, or receives from it, is under way from when both have come
 * until it is received. all: [ranks, most]. */
static void pair_letters(struct measure *m, const struct letter *all, int64_t most, int64_t me,
                         int64_t other, int64_t sends)
{
    const struct letter *mine = all + me * most, *theirs = all + other * most;
    const struct letter *const mine_end = mine + most, *const theirs_end = theirs + most;
    for (;; mine++, theirs++) {
        mine = next(mine, mine_end, other, sends);
        theirs = next(theirs, theirs_end, me, !sends);
        if (mine == mine_end || theirs == theirs_end) {
            break;
        }
        const struct letter *received = sends ? theirs : mine;
        const int64_t a = mine->span.begin, b = theirs->span.begin;
        m->way[m->ways++] = (struct hidden_span){a > b ? a : b, received->span.end};
    }
    m->known = m->known && mine == mine_end && theirs == theirs_end;
}

/* Collective over the group. Errors, agreed: STATUS_RESOURCE. */
static enum status add_letters(struct measure *m, struct comm *group)
{
    int64_t most[1] = {count_letters(m, group)};
    comm_all_reduce(group, most, 1, DTYPE_I64, REDUCE_MAX);
    const size_t room = (size_t)most[0];
    struct letter *all = malloc((size_t)group->size * room * sizeof *all + 1),
                  *own = malloc(room * sizeof *own + 1);
    enum status status = all != NULL && own != NULL
                             ? STATUS_OK
                             : status_fail(STATUS_RESOURCE, "out of memory for a profile");
    status = comm_agree(group, status, NULL);
    if (status == STATUS_OK) {
        for (size_t i = 0; i < room; i++) {
            own[i] = (struct letter){.peer = -1};
        }
        letters_of(m, group, own);
        comm_all_gather(group, all, own, room * sizeof *own);
        for (int other = 0; other < group->size; other++) {
            pair_letters(m, all, most[0], group->rank, other, 1);
            pair_letters(m, all, most[0], group->rank, other, 0);
        }
    }
    free(all);
    free(own);
    return status;
}

/* This rank's calls; those that start a message or move it on have it under way. */
static void add_calls(struct measure *m, bool letters)
{
    for (int64_t i = 0; i < m->count; i++) {
        const struct span *span = &m->spans->span[i];
        if (!communicates(span) || span->lane != SPAN_TRAINING || (letters && span->peer < 0)) {
            continue;
        }
        m->call[m->calls++] = on_clock(m, span);
        if (span->kind == SPAN_CALL) {
            m->way[m->ways++] = on_clock(m, span);
        }
    }
}

/* Whether a group before the i-th is the same: it has been asked. */
static bool again(struct mesh *mesh, int i)
{
    const struct comm *group = mesh_each(mesh, i);
    for (int before = 0; before < i; before++) {
        const struct comm *other = mesh_each(mesh, before);
        if (other->size == group->size && strcmp(other->name, group->name) == 0) {
            return true;
        }
    }
    return false;
}

/* Collective over the mesh's world. Errors: STATUS_RESOURCE, agreed. */
static enum status add_all(struct measure *m, struct mesh *mesh, bool letters)
{
    const size_t room = 2 * (size_t)m->count + 1;
    m->way = malloc(room * sizeof *m->way);
    m->call = malloc(room * sizeof *m->call);
    m->own = malloc(room * sizeof *m->own);
    const enum status status = m->way != NULL && m->call != NULL && m->own != NULL
                                   ? STATUS_OK
                                   : status_fail(STATUS_RESOURCE, "out of memory for a profile");
    TRY(comm_agree(mesh->world, status, NULL));
    add_calls(m, letters);
    for (int i = 0; !letters && mesh_each(mesh, i) != NULL; i++) {
        if (mesh_each(mesh, i)->size > 0 && !again(mesh, i)) {
            add_group(m, mesh_each(mesh, i));
        }
    }
    return comm_agree(mesh->world, add_letters(m, &mesh->pp), NULL);
}

enum status hidden_measure(struct hidden *hidden, struct mesh *mesh, const struct spans *spans,
                           int64_t offset_ns, bool letters)
{
    const int64_t count = spans->count < spans->room ? spans->count : spans->room;
    struct measure m = {
        .spans = spans, .count = count, .offset_ns = offset_ns, .known = spans->count == count};
    const enum status status = add_all(&m, mesh, letters);
    *hidden = (struct hidden){0};
    if (status == STATUS_OK) {
        *hidden = hidden_times(m.way, m.ways, m.call, m.calls);
        hidden->known = m.known;
    }
    free(m.way);
    free(m.call);
    free(m.own);
    return status;
}
