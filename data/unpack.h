/* unpack: reads a file from its beginning, as it is, gzip'ed or zstd'ed, as a stream of bytes.
 *
 * Several gzip members or zstd frames one after another are one stream, as their tools write it.
 */
#ifndef DATA_UNPACK_H
#define DATA_UNPACK_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/base/io.h"

enum packing { PACKING_NONE, PACKING_GZIP, PACKING_ZSTD };

/* A zeroed one is closed. */
struct unpack {
    enum packing packing;
    struct io_file file;
    int64_t at, size; /* in the file: read so far, all */
    char *input;      /* [UNPACK_PIECE] owned; NULL: PACKING_NONE */
    size_t input_at, input_count;
    void *stream;  /* owned: z_stream or ZSTD_DStream */
    int open_part; /* a member or frame is begun and not yet ended */
};

enum { UNPACK_PIECE = 1 << 16 };

/* Local. By the end of the name: .gz, .zst, else none. */
enum packing unpack_kind(const char *path);

/* Local. Errors: STATUS_IO, STATUS_RESOURCE. Close it either way. */
enum status unpack_open(struct unpack *unpack, const char *path, enum packing packing)
    __attribute__((warn_unused_result));
/* Local. Up to `room` bytes, fewer only at the end; *got 0: there is no more. Errors: STATUS_IO;
 * STATUS_DATA where it is damaged, cut off or not of its kind, naming the file. */
enum status unpack_read(struct unpack *unpack, void *data, size_t room, size_t *got)
    __attribute__((warn_unused_result));
void unpack_close(struct unpack *unpack); /* accepts a zeroed one; may be called twice */

#endif
