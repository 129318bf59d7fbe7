#include "kernels/base/h5_reader.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/h5_driver.h"

/* What HDF5 knows as an open file: its own part first. */
struct driver_file {
    H5FD_t part;
    struct h5_reader *reader; /* borrowed */
    haddr_t allocated;        /* end of what HDF5 takes for its own */
};

/* What the access list carries. */
struct driver_info {
    struct h5_reader *reader;
};

/* --- HDF5's driver interface; the parameters are its own --- */

static H5FD_t *driver_open(const char *name, unsigned flags, hid_t access, haddr_t most)
{
    const struct driver_info *info = H5Pget_driver_info(access);
    struct driver_file *file = info != NULL ? calloc(1, sizeof *file) : NULL;
    (void)name;
    (void)flags;
    (void)most;
    if (file == NULL) {
        return NULL;
    }
    file->reader = info->reader;
    return &file->part;
}

static herr_t driver_close(H5FD_t *part)
{
    free(part);
    return 0;
}

static haddr_t driver_get_allocated(const H5FD_t *part, H5FD_mem_t type)
{
    (void)type;
    return ((const struct driver_file *)part)->allocated;
}

static herr_t driver_set_allocated(H5FD_t *part, H5FD_mem_t type, haddr_t end)
{
    (void)type;
    ((struct driver_file *)part)->allocated = end;
    return 0;
}

static haddr_t driver_get_end(const H5FD_t *part, H5FD_mem_t type)
{
    (void)type;
    return (haddr_t)((const struct driver_file *)part)->reader->bytes;
}

/* Zeros behind the end, as HDF5's own file driver has it. */
static herr_t driver_read(H5FD_t *part, H5FD_mem_t type, hid_t transfer, haddr_t at, size_t bytes,
                          void *to)
{
    struct h5_reader *reader = ((struct driver_file *)part)->reader;
    const haddr_t end = (haddr_t)reader->bytes, left = at < end ? end - at : 0;
    const size_t there = left < bytes ? (size_t)left : bytes;
    (void)type;
    (void)transfer;
    memset((char *)to + there, 0, bytes - there);
    if (reader->status != STATUS_OK) {
        return -1;
    }
    reader->status = there > 0 ? io_pread(reader->file, to, there, (int64_t)at) : STATUS_OK;
    if (reader->status != STATUS_OK) {
        snprintf(reader->message, sizeof reader->message, "%s", status_message());
        return -1;
    }
    return 0;
}

/* Nobody writes to a file that is open for reading. */
static herr_t driver_write(H5FD_t *part, H5FD_mem_t type, hid_t transfer, haddr_t at, size_t bytes,
                           const void *from)
{
    (void)part;
    (void)type;
    (void)transfer;
    (void)at;
    (void)bytes;
    (void)from;
    return -1;
}

static const H5FD_class_t driver = {
#if H5_VERSION_GE(1, 13, 0)
    .version = H5FD_CLASS_VERSION,
    .value = (H5FD_class_value_t)301, /* from 256 on they are free for private use */
#endif
    .name = "switchyard reader",
    .maxaddr = (haddr_t)INT64_MAX,
    .fc_degree = H5F_CLOSE_STRONG, /* nothing outlives the struct */
    .fapl_size = sizeof(struct driver_info),
    .open = driver_open,
    .close = driver_close,
    .cmp = h5_driver_compare,
    .query = h5_driver_query,
    .get_eoa = driver_get_allocated,
    .set_eoa = driver_set_allocated,
    .get_eof = driver_get_end,
    .read = driver_read,
    .write = driver_write,
    .fl_map = H5FD_FLMAP_DICHOTOMY,
};

static hid_t open_with(const struct driver_info *info, const char *path)
{
    const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    const bool good = access >= 0 && h5_driver_set(access, &driver, info);
    const hid_t file = good ? H5Fopen(path, H5F_ACC_RDONLY, access) : -1;
    if (access >= 0) {
        H5Pclose(access);
    }
    return file;
}

enum status h5_reader_open(struct h5_reader *reader, struct io_file *file)
{
    *reader = (struct h5_reader){.file = file, .id = -1};
    TRY(io_size(file, &reader->bytes));
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    reader->id = open_with(&(struct driver_info){.reader = reader}, file->path);
    return h5_reader_status(reader);
}

enum status h5_reader_status(const struct h5_reader *reader)
{
    return reader->status == STATUS_OK ? STATUS_OK : status_lines(reader->status, reader->message);
}

void h5_reader_close(struct h5_reader *reader)
{
    if (reader->id >= 0) {
        H5Fclose(reader->id);
        reader->id = -1;
    }
}
