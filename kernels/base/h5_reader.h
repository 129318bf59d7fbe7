/* h5_reader: HDF5 reads a file through io. Its reads then are operations of io like all others:
 * interrupted and short ones are gone on with, and tests make them fail.
 */
#ifndef KERNELS_BASE_H5_READER_H
#define KERNELS_BASE_H5_READER_H

#include <hdf5.h>

#include "kernels/base/io.h"

/* A file that HDF5 has open; stays where it is until h5_reader_close. */
struct h5_reader {
    struct io_file *file; /* borrowed */
    int64_t bytes;        /* of it, when it was opened */
    hid_t id;             /* what HDF5's functions take; -1: HDF5 cannot open it */
    enum status status;   /* of the first read that failed */
    char message[1024];   /* and its words */
};

/* Local. Whatever HDF5 makes of the file, `id` says; errors are io's alone. Close it either way. */
enum status h5_reader_open(struct h5_reader *reader, struct io_file *file) IO_CHECKED;
/* Whether all that HDF5 wanted to read so far could be read: where not, what it said since may be
 * wrong (a dataset that is not there, an attribute). Errors: io's, of the first read that failed.
 */
enum status h5_reader_status(const struct h5_reader *reader) IO_CHECKED;
void h5_reader_close(struct h5_reader *reader);

#endif
