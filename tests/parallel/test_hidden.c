/* hidden: what of a rank's communication is hidden, exposed and idle, of spans that are made here:
 * a millisecond of them is one of the numbers below.
 */
#include "ranks.h"
#include "trainer/hidden.h"

enum { ROOM = 16 };
static const int64_t MS = 1000000;

/* hidden, exposed, idle */
static void check(struct comm *world, struct hidden hidden, bool known, const double want[3])
{
    CHECK_EQUAL(world, hidden.known, known);
    if (known) {
        CHECK_EQUAL(world, hidden.hidden, want[0]);
        CHECK_EQUAL(world, hidden.exposed, want[1]);
        CHECK_EQUAL(world, hidden.idle, want[2]);
    }
}

/* Two under way at once count once, calls that touch too, what has no length not at all. */
static void test_times(struct comm *world)
{
    struct hidden_span way[] = {{30 * MS, 40 * MS},
                                {5 * MS, 20 * MS},
                                {0, 10 * MS},
                                {60 * MS, 50 * MS}},
                       call[] = {{35 * MS, 45 * MS}, {8 * MS, 10 * MS}, {10 * MS, 12 * MS}};
    check(world, hidden_times(way, 4, call, 3), true, (const double[]){21, 9, 5});
    check(world, hidden_times(way, 0, call, 0), true, (const double[]){0, 0, 0});
}

/* What a rank has kept, by a clock that is ahead of rank 0's. */
struct kept {
    struct spans spans;
    struct span span[ROOM];
    int64_t ahead;
};

static void keep(struct kept *kept, struct span span, int64_t begin, int64_t end)
{
    span.begin_ns = begin * MS + kept->ahead;
    span.end_ns = end * MS + kept->ahead;
    spans_add(&kept->spans, span);
}

static void begin(struct kept *kept, const struct comm *world, int64_t room)
{
    *kept = (struct kept){.spans = {.room = room, .span = kept->span}, .ahead = 77 * world->rank};
}

static struct hidden measure(struct comm *world, struct mesh *mesh, const struct kept *kept,
                             bool letters)
{
    struct hidden hidden;
    CHECK(world, hidden_measure(&hidden, mesh, &kept->spans, kept->ahead, letters) == STATUS_OK);
    return hidden;
}

/* Every stage sends two messages to the next, which waits for the first, and comes late to the
 * second; and what is nobody's. */
static void keep_letters(struct kept *kept, const struct comm *pp)
{
    const int to = pp->rank + 1, from = pp->rank - 1;
    const struct span call = {.name = "send",
                              .group = "pp",
                              .ranks = pp->size,
                              .peer = to,
                              .kind = SPAN_CALL},
                      wait = {.name = "send, finish",
                              .group = "pp",
                              .ranks = pp->size,
                              .peer = to,
                              .kind = SPAN_WAIT},
                      receive = {.name = "receive",
                                 .group = "pp",
                                 .ranks = pp->size,
                                 .peer = from,
                                 .kind = SPAN_MESSAGE};
    if (from >= 0) {
        keep(kept, receive, 4, 16);
    }
    if (to < pp->size) {
        keep(kept, call, 10, 11);
        keep(kept, call, 20, 21);
    }
    if (from >= 0) {
        keep(kept, receive, 30, 33);
    }
    if (to < pp->size) {
        keep(kept, wait, 40, 42);
    }
    keep(kept, (struct span){.name = "attention", .peer = -1, .kind = SPAN_OPERATION}, 0, 50);
}

static void test_stages(struct comm *world)
{
    static const double first[] = {8, 2, 2}, middle[] = {0, 10, 8}, last[] = {0, 9, 6};
    const struct mesh_shape shape = {.pp = world->size, .tp = 1, .cp = 1, .ep = 1, .etp = 1};
    struct kept kept;
    struct mesh mesh;
    CHECK(world, mesh_init(&mesh, world, &shape, 1) == STATUS_OK);
    for (int letters = 0; letters < 2 && world->size > 1; letters++) {
        begin(&kept, world, ROOM);
        keep_letters(&kept, &mesh.pp);
        check(world, measure(world, &mesh, &kept, letters == 1), true,
              world->rank == 0                 ? first
              : world->rank == world->size - 1 ? last
                                               : middle);
    }
    /* one that its receiver has not kept */
    begin(&kept, world, ROOM);
    if (world->size > 1 && world->rank == 0) {
        keep(&kept, (struct span){.name = "send", .group = "pp", .peer = 1, .kind = SPAN_CALL}, 1,
             2);
    }
    check(world, measure(world, &mesh, &kept, true), world->size == 1 || world->rank > 1,
          (const double[]){0, 0, 0});
    mesh_free(&mesh);
}

/* Rank 0 comes first, to rows that travel beside computing and to a sum that all wait for. */
static void keep_rows(struct kept *kept, const struct comm *world, bool all)
{
    const int64_t at = world->rank == 0 ? 5 : 9, sum = world->rank == 0 ? 20 : 26;
    struct span span = {.name = "all_to_all",
                        .group = "ep",
                        .ranks = world->size,
                        .peer = -1,
                        .lane = SPAN_WIRE,
                        .kind = SPAN_MESSAGE};
    keep(kept, span, at, 15);
    span.lane = SPAN_TRAINING;
    span.kind = SPAN_CALL;
    keep(kept, span, at, at + 1);
    span.kind = SPAN_WAIT;
    keep(kept, span, 12, 15);
    span.kind = SPAN_MESSAGE;
    span.group = "world";
    if (all) {
        keep(kept, span, sum, 30);
    }
}

static void test_groups(struct comm *world)
{
    static const double first[] = {3, 8, 6}, others[] = {2, 8, 0}, letters[] = {0, 0, 0},
                        alone[] = {6, 14, 0};
    const struct mesh_shape shape = mesh_shape_of(1, world->size);
    const double *const want = world->size == 1 ? alone : world->rank == 0 ? first : others;
    struct kept kept;
    struct mesh mesh;
    CHECK(world, mesh_init(&mesh, world, &shape, world->size) == STATUS_OK);
    begin(&kept, world, ROOM);
    keep_rows(&kept, world, true);
    check(world, measure(world, &mesh, &kept, false), true, want);
    check(world, measure(world, &mesh, &kept, true), true, letters);
    /* one that a rank has not kept, and one that had no room */
    begin(&kept, world, ROOM);
    keep_rows(&kept, world, world->rank == 0);
    check(world, measure(world, &mesh, &kept, false), world->size == 1, want);
    begin(&kept, world, world->rank == 0 ? 3 : ROOM);
    keep_rows(&kept, world, false);
    keep(&kept, (struct span){.name = "attention", .peer = -1, .kind = SPAN_OPERATION}, 0, 1);
    CHECK_EQUAL(world, measure(world, &mesh, &kept, false).known, world->rank > 0);
    mesh_free(&mesh);
}

int main(void)
{
    static const struct ranks_test tests[] = {RANKS_TEST(test_times), RANKS_TEST(test_stages),
                                              RANKS_TEST(test_groups)};
    return RANKS_MAIN(tests);
}
