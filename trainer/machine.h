/* machine: what of this machine, besides its devices, a run may stumble over: findings, each with
 * what to do about it. */
#ifndef TRAINER_MACHINE_H
#define TRAINER_MACHINE_H

#include "parallel/comm.h"

enum { MACHINE_FINDINGS = 8, MACHINE_TEXT = 160 };

struct finding {
    const char *name;          /* "shared memory" */
    const char *key;           /* of --json: "shm_mib" */
    double number;             /* NAN: could not be found out */
    char text[MACHINE_TEXT];   /* for people, with its unit */
    char remedy[MACHINE_TEXT]; /* "" where all is well */
};

struct machine {
    struct finding finding[MACHINE_FINDINGS];
    int findings;
};

/* Bytes that this process's control groups (version 1 or 2, however deeply nested) let it have;
 * INFINITY: all. root: "", or a folder with proc/ and sys/ in it. */
double machine_memory_limit(const char *root);

/* Collective over world; the findings are rank 0's. `folder`: whose disk is written to (64 MiB,
 * removed again). threads: of a rank. */
void machine_look(struct machine *machine, struct comm *world, const char *folder, int threads);

#endif
