#include "data/file_map.h"

#include <sys/mman.h>

#include "kernels/base/io.h"

static enum status map_file(struct file_map *map, struct io_file *file)
{
    int64_t bytes = 0;
    TRY(io_size(file, &bytes));
    if (bytes == 0) {
        return STATUS_OK;
    }
    void *data = mmap(NULL, (size_t)bytes, PROT_READ, MAP_SHARED, file->fd, 0);
    if (data == MAP_FAILED) {
        return status_fail(STATUS_IO, "%s: cannot map the file into memory", file->path);
    }
    *map = (struct file_map){.data = data, .bytes = (size_t)bytes};
    return STATUS_OK;
}

enum status file_map_open(struct file_map *map, const char *path)
{
    struct io_file file;
    *map = (struct file_map){0};
    TRY(io_check_regular(path));
    TRY(io_open_read(&file, path));
    const enum status status = map_file(map, &file), closed = io_close(&file);
    return status == STATUS_OK ? closed : status;
}

void file_map_close(struct file_map *map)
{
    if (map->data != NULL) {
        munmap((void *)(uintptr_t)map->data, map->bytes);
    }
    *map = (struct file_map){0};
}
