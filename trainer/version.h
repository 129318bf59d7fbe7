/* version: what this binary is. */
#ifndef TRAINER_VERSION_H
#define TRAINER_VERSION_H

#include <stdio.h>

/* "switchyard 0.1.0 (commit abc), devices: cpu, comm: self mpi". */
void version_print(FILE *out);
const char *version_commit(void);

#endif
