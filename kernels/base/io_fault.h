/* io_fault: what tests do to the operations of io: make the k-th one fail, tear or kill the
 * process, and watch all of them go by.
 *
 * Operations that modify (create and open for writing, write, truncate, sync, close of what was
 * written, make, sync, rename and remove of names) are counted apart from those that read (open,
 * read, size, list). Armed by tests and debug.fault alone; else every call passes through.
 * Operations of several threads are counted together; arm and observe while only one has any.
 */
#ifndef KERNELS_BASE_IO_FAULT_H
#define KERNELS_BASE_IO_FAULT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum io_fault {
    IO_FAULT_NONE,
    IO_FAULT_EIO,    /* these three: the operation fails, nothing of it is done (a close is) */
    IO_FAULT_ENOSPC, /* only what can need space meets it; the rest meets IO_FAULT_EIO */
    IO_FAULT_EDQUOT,
    IO_FAULT_EINTR, /* a signal interrupts it once: it must be done again */
    IO_FAULT_SHORT, /* of a write or a read half is done: the rest must follow */
    IO_FAULT_CUT,   /* a read meets the end of the file half way; nothing to other operations */
    IO_FAULT_FLIP,  /* a read gives one bit wrong; nothing to other operations */
    IO_FAULT_SLOW,  /* 50 ms later than asked for */
    IO_FAULT_KILL_BEFORE,
    IO_FAULT_KILL_TORN, /* of a write half is done; the rest as after */
    IO_FAULT_KILL_AFTER
};

/* The `operation`-th (from 1) modifying operation from now on meets `fault`; sticky: all later ones
 * too. */
void io_fault_arm(enum io_fault fault, int64_t operation, bool sticky);
/* The same for reading operations, beside it. */
void io_fault_arm_reads(enum io_fault fault, int64_t operation, bool sticky);
int64_t
io_operations(void); /* modifying operations since the last arm: how long a loop over k must run */
int64_t io_reads(void); /* reading ones, since theirs */

enum io_kind {
    IO_OPEN,
    IO_OPEN_OR_CREATE,
    IO_CREATE, /* or emptied */
    IO_WRITE,  /* `data`, `bytes`, `offset` */
    IO_TRUNCATE,
    IO_SYNC,
    IO_CLOSE,
    IO_MAKE_DIR,
    IO_SYNC_DIR,
    IO_RENAME, /* to `to` */
    IO_REMOVE,
    IO_REMOVE_DIR
};

/* A modifying operation that was done; all borrowed. */
struct io_event {
    enum io_kind kind;
    const char *path, *to;
    const void *data;
    int64_t bytes, offset; /* of IO_TRUNCATE: the size in `bytes` */
};

/* `see` is called after each, by one thread at a time; NULL: no more. */
void io_observe(void (*see)(void *context, const struct io_event *event), void *context);

/* --- for io.c --- */

enum io_fault io_meet(void);      /* counts a modifying operation; kill-before happens here */
enum io_fault io_meet_read(void); /* counts a reading one */
/* Whether the operation fails; sets errno. `space`: it may need space on the disk. */
bool io_fails(enum io_fault fault, bool space);
/* Whether a signal interrupts it, once; sets errno. */
bool io_interrupted(enum io_fault *fault);
void io_after(enum io_fault fault, const struct io_event *event); /* it was done */
bool io_observed(void);

#endif
