#include "emulator/block.h"

enum { COPIES_MAX = 128 };

/* Copies of one thread, oldest first. Late seeds run a copy in the wait that covers it, others at
 * once; either way its bytes are NaN until then. */
struct copy {
    void *shared;
    const void *global;
    int valid, group;
};
struct queue {
    struct copy copies[COPIES_MAX];
    int count, committed;
};
static struct queue queues[EMU_THREADS_MAX];
static bool used; /* by the block */

void cp_async_begin()
{
    for (int i = 0; i < EMU_THREADS_MAX && used; i++)
        queues[i].count = queues[i].committed = 0;
    used = false;
}

void cp_async_end(struct emu_at kernel)
{
    for (int i = 0; i < block_threads() && used; i++)
        if (queues[i].count)
            emu_fail(kernel, "thread %d returned with %d cp_async_16 not waited for", i,
                     queues[i].count);
}

static void copy_run(const struct copy *c)
{
    race_read(c->global, (size_t)c->valid);
    race_write(c->shared, 16);
    copy_bytes(c->shared, c->global, (size_t)c->valid);
    fill_bytes((char *)c->shared + c->valid, 0, (size_t)(16 - c->valid));
}

void emu_cp_async(void *shared, const void *global, int valid, struct emu_at at)
{
    shared_range(shared, 16, 16, "cp_async_16", at);
    if ((uintptr_t)global % 16)
        emu_fail(at, "cp_async_16: global address not a multiple of 16");
    if (valid != 0 && valid != 16)
        emu_fail(at, "cp_async_16: %d bytes valid, want 0 or 16", valid);
    struct queue *q = &queues[block_current()];
    used = true;
    if (q->count == COPIES_MAX)
        emu_fail(at, "more than %d cp_async_16 of one thread in flight", COPIES_MAX);
    struct copy c = {shared, global, valid, q->committed};
    if (emu_seed() % 2)
        copy_run(&c);
    else
        fill_bytes(shared, 0xff, 16);
    q->copies[q->count++] = c;
}

void emu_cp_async_commit()
{
    queues[block_current()].committed++;
    used = true;
}

void emu_cp_async_wait(int pending, struct emu_at)
{
    struct queue *q = &queues[block_current()];
    int done = 0;
    while (done < q->count && q->copies[done].group < q->committed - pending) {
        if (emu_seed() % 2 == 0)
            copy_run(&q->copies[done]);
        done++;
    }
    for (int i = done; i < q->count; i++)
        q->copies[i - done] = q->copies[i];
    q->count -= done;
}
