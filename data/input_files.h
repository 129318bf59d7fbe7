/* input_files: what prepare reads, as a list of files in order: named ones as named, folders sorted
 * by path with all that is in them.
 */
#ifndef DATA_INPUT_FILES_H
#define DATA_INPUT_FILES_H

#include <stdbool.h>
#include <stdint.h>

#include "data/unpack.h"

struct input_file {
    char *path;    /* owned */
    int64_t bytes; /* on disk */
    int64_t mtime_ns;
    enum packing packing;
    bool lines; /* .jsonl: a document per line; else the file is one document */
    bool named; /* given by the user, not found in a folder */
};

/* What of a folder counts. Patterns as the shell's; one with a slash is held against the path below
 * the folder, else against the name. */
struct input_filter {
    const char *const *include; /* [include_count] of files; none: all */
    const char *const *exclude; /* [exclude_count] of files and folders */
    int include_count, exclude_count;
    int64_t least_bytes, most_bytes; /* of a file, named or found, on disk; most 0: no limit */
    const char *output;              /* this file and what prepare keeps beside it are no inputs */
};

struct input_files {
    struct input_file *file; /* [count] owned */
    int64_t count, room;
    int64_t bytes;             /* of all */
    int64_t left_out, by_size; /* found, but not by pattern, or for its size */
};

/* Local. Of what a folder holds: files and folders, and links to files. Pipes would hang a reader,
 * links to folders could lead back, and a link that leads nowhere holds no text.
 * Errors: STATUS_IO for what is named and not there; STATUS_USAGE where an input is the output, or
 * a pattern begins or ends with a slash; STATUS_RESOURCE. Free it either way. */
enum status input_files_list(struct input_files *files, char *const *inputs, int input_count,
                             const struct input_filter *filter) __attribute__((warn_unused_result));
void input_files_free(struct input_files *files); /* accepts a zeroed one; may be called twice */
/* Whether two lists, of the same inputs on the same options, are equal: a hash of paths, sizes and
 * times. */
uint64_t input_files_hash(const struct input_files *files);

#endif
