#include "trainer/version.h"

#ifndef SWITCHYARD_VERSION
#error "the build defines SWITCHYARD_VERSION and SWITCHYARD_COMMIT"
#endif

const char *version_commit(void)
{
    return SWITCHYARD_COMMIT;
}

void version_print(FILE *out)
{
    fprintf(out, "switchyard %s (commit %s)\ndevices: cpu (oneDNN)\ncomm: self, mpi\n",
            SWITCHYARD_VERSION, SWITCHYARD_COMMIT);
}
