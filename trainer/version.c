#include "trainer/version.h"

#include "kernels/device.h"
#include "parallel/comm.h"

#ifndef SWITCHYARD_VERSION
#error "the build defines SWITCHYARD_VERSION and SWITCHYARD_COMMIT"
#endif

const char *version_commit(void)
{
    return SWITCHYARD_COMMIT;
}

void version_print(FILE *out)
{
    char devices[256];
    device_built(devices, sizeof devices);
    const char *nccl = comm_nccl_built();
    fprintf(out, "switchyard %s (commit %s)\ndevices: %s\ncomm: self, mpi%s%s\n",
            SWITCHYARD_VERSION, SWITCHYARD_COMMIT, devices, nccl[0] != '\0' ? ", " : "", nccl);
}
