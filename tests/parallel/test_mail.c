/* mail: messages between two ranks arrive whole and in order, also many at once, before anyone
 * receives, in both directions; also through host buffers, as of a GPU's memory. */
#include "parallel/mail.h"
#include "ranks.h"

enum { MESSAGES = 5, MOST = 70001 };

static size_t bytes_of(int i)
{
    static const size_t sizes[MESSAGES] = {8, MOST, 1, 4096, MOST - 1};
    return sizes[i];
}

static uint8_t value(int from, int message, size_t at)
{
    return (uint8_t)(from * 31 + message * 7 + (int)(at % 251));
}

/* Every rank to the next one, `back`: to the one before. */
static void ring(struct comm *world, bool back)
{
    static uint8_t out[MESSAGES][MOST], in[MOST];
    struct mail sending[MESSAGES], receiving;
    const int next = (world->rank + 1) % world->size,
              last = (world->rank + world->size - 1) % world->size, to = back ? last : next,
              from = back ? next : last;
    CHECK(world, mail_init(&receiving, world, MOST) == STATUS_OK);
    for (int i = 0; i < MESSAGES; i++) {
        for (size_t b = 0; b < bytes_of(i); b++) {
            out[i][b] = value(world->rank, i, b);
        }
        CHECK(world, mail_init(&sending[i], world, MOST) == STATUS_OK);
        mail_send_start(&sending[i], out[i], bytes_of(i), to);
    }
    for (int i = 0; i < MESSAGES; i++) {
        memset(in, 0xaa, sizeof in);
        mail_receive(&receiving, in, bytes_of(i), from);
        for (size_t b = 0; b < sizeof in; b++) {
            CHECK_EQUAL(world, in[b], b < bytes_of(i) ? value(from, i, b) : 0xaa);
        }
    }
    for (int i = 0; i < MESSAGES; i++) {
        mail_send_finish(&sending[i]);
        mail_send_finish(&sending[i]); /* nothing is under way any more */
        mail_free(&sending[i]);
        mail_free(&sending[i]);
    }
    mail_free(&receiving);
}

static void test_ring(struct comm *world)
{
    if (world->size > 1) { /* nobody sends to itself */
        ring(world, false);
        ring(world, true);
    }
}

/* Messages under way do not mix with an exchange of the same group. */
static void test_beside_an_exchange(struct comm *world)
{
    struct mail mail;
    int64_t rows[16], to[16], got[16], sent = world->rank, came = -1;
    if (world->size == 1) {
        return;
    }
    for (int r = 0; r < world->size; r++) {
        rows[r] = 1;
        to[r] = 100 * world->rank + r;
    }
    CHECK(world, mail_init(&mail, world, sizeof sent) == STATUS_OK);
    mail_send_start(&mail, &sent, sizeof sent, (world->rank + 1) % world->size);
    comm_all_to_all(world, got, rows, to, rows, sizeof got[0]);
    for (int r = 0; r < world->size; r++) {
        CHECK_EQUAL(world, got[r], 100 * r + world->rank);
    }
    comm_receive(world, &came, sizeof came, (world->rank + world->size - 1) % world->size);
    CHECK_EQUAL(world, came, (world->rank + world->size - 1) % world->size);
    mail_send_finish(&mail);
    mail_free(&mail);
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_ring),
        RANKS_TEST(test_beside_an_exchange),
    };
    return RANKS_MAIN(tests);
}
