#include "kernels/base/h5_image.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/base/h5_driver.h"

enum { PAGE_BYTES = 4096, BLOCK_PAGES = 1024 };
static const int64_t BLOCK_BYTES = (int64_t)PAGE_BYTES * BLOCK_PAGES;

struct h5_image_block {
    unsigned char *page[BLOCK_PAGES]; /* each owned; NULL: zeros */
};

/* What HDF5 knows as an open file: its own part first. */
struct driver_file {
    H5FD_t part;
    struct h5_image *image; /* borrowed */
    haddr_t reserved, end;  /* end of what is reserved, of what was written */
};

/* What the access list carries. */
struct driver_info {
    struct h5_image *image;
};

/* --- pages --- */

static bool reach_block(struct h5_image *image, int64_t index)
{
    if (index >= image->blocks) {
        const int64_t room = index + 1 > 2 * image->blocks ? index + 1 : 2 * image->blocks;
        struct h5_image_block **grown = realloc(image->block, (size_t)room * sizeof *grown);
        if (grown == NULL) {
            return false;
        }
        memset(grown + image->blocks, 0, (size_t)(room - image->blocks) * sizeof(void *));
        image->block = grown;
        image->blocks = room;
    }
    if (image->block[index] == NULL) {
        image->block[index] = calloc(1, sizeof *image->block[index]);
    }
    return image->block[index] != NULL;
}

/* The page that byte `at` lies in, made when missing; NULL: out of memory. */
static unsigned char *page_of(struct h5_image *image, int64_t at)
{
    const int64_t index = at / BLOCK_BYTES;
    if (!reach_block(image, index)) {
        return NULL;
    }
    unsigned char **page = &image->block[index]->page[at % BLOCK_BYTES / PAGE_BYTES];
    if (*page == NULL) {
        *page = calloc(1, PAGE_BYTES);
    }
    return *page;
}

static size_t left_of_page(int64_t at, size_t bytes)
{
    const size_t left = (size_t)(PAGE_BYTES - at % PAGE_BYTES);
    return left < bytes ? left : bytes;
}

static bool put(struct h5_image *image, int64_t at, const void *data, size_t bytes)
{
    const unsigned char *from = data;
    while (bytes > 0) {
        const size_t piece = left_of_page(at, bytes);
        unsigned char *page = page_of(image, at);
        if (page == NULL) {
            image->failed = true;
            return false;
        }
        memcpy(page + at % PAGE_BYTES, from, piece);
        from += piece;
        at += (int64_t)piece;
        bytes -= piece;
    }
    return true;
}

void h5_image_read(const struct h5_image *image, int64_t begin, void *to, size_t bytes)
{
    unsigned char *out = to;
    while (bytes > 0) {
        const int64_t index = begin / BLOCK_BYTES;
        const struct h5_image_block *block = index < image->blocks ? image->block[index] : NULL;
        size_t piece = left_of_page(begin, bytes);
        if (block == NULL) { /* all of what is left of the block */
            const size_t whole = (size_t)(BLOCK_BYTES - begin % BLOCK_BYTES);
            piece = whole < bytes ? whole : bytes;
        }
        const unsigned char *page =
            block != NULL ? block->page[begin % BLOCK_BYTES / PAGE_BYTES] : NULL;
        if (page != NULL) {
            memcpy(out, page + begin % PAGE_BYTES, piece);
        } else {
            memset(out, 0, piece);
        }
        out += piece;
        begin += (int64_t)piece;
        bytes -= piece;
    }
}

void h5_image_free(struct h5_image *image)
{
    for (int64_t b = 0; b < image->blocks; b++) {
        for (int p = 0; image->block[b] != NULL && p < BLOCK_PAGES; p++) {
            free(image->block[b]->page[p]);
        }
        free(image->block[b]);
    }
    free(image->block);
    *image = (struct h5_image){0};
}

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
    file->image = info->image;
    return &file->part;
}

static herr_t driver_close(H5FD_t *part)
{
    struct driver_file *file = (struct driver_file *)part;
    file->image->bytes = (int64_t)(file->reserved > file->end ? file->reserved : file->end);
    free(file);
    return 0;
}

static haddr_t driver_get_reserved(const H5FD_t *part, H5FD_mem_t type)
{
    (void)type;
    return ((const struct driver_file *)part)->reserved;
}

static herr_t driver_set_reserved(H5FD_t *part, H5FD_mem_t type, haddr_t end)
{
    (void)type;
    ((struct driver_file *)part)->reserved = end;
    return 0;
}

static haddr_t driver_get_end(const H5FD_t *part, H5FD_mem_t type)
{
    (void)type;
    return ((const struct driver_file *)part)->end;
}

static herr_t driver_read(H5FD_t *part, H5FD_mem_t type, hid_t transfer, haddr_t at, size_t bytes,
                          void *to)
{
    (void)type;
    (void)transfer;
    h5_image_read(((struct driver_file *)part)->image, (int64_t)at, to, bytes);
    return 0;
}

static herr_t driver_write(H5FD_t *part, H5FD_mem_t type, hid_t transfer, haddr_t at, size_t bytes,
                           const void *from)
{
    struct driver_file *file = (struct driver_file *)part;
    (void)type;
    (void)transfer;
    if (!put(file->image, (int64_t)at, from, bytes)) {
        return -1;
    }
    file->end = at + bytes > file->end ? at + bytes : file->end;
    return 0;
}

static herr_t driver_truncate(H5FD_t *part, hid_t transfer, hbool_t closing)
{
    struct driver_file *file = (struct driver_file *)part;
    (void)transfer;
    (void)closing;
    file->end = file->reserved;
    return 0;
}

static const H5FD_class_t driver = {
#if H5_VERSION_GE(1, 13, 0)
    .version = H5FD_CLASS_VERSION,
    .value = (H5FD_class_value_t)300, /* from 256 on they are free for private use */
#endif
    .name = "switchyard image",
    .maxaddr = (haddr_t)INT64_MAX,
    .fc_degree = H5F_CLOSE_WEAK,
    .fapl_size = sizeof(struct driver_info),
    .open = driver_open,
    .close = driver_close,
    .cmp = h5_driver_compare,
    .query = h5_driver_query,
    .get_eoa = driver_get_reserved,
    .set_eoa = driver_set_reserved,
    .get_eof = driver_get_end,
    .read = driver_read,
    .write = driver_write,
    .truncate = driver_truncate,
    .fl_map = H5FD_FLMAP_DICHOTOMY,
};

enum status h5_image_access(hid_t access, struct h5_image *image)
{
    const struct driver_info info = {.image = image};
    return h5_driver_set(access, &driver, &info)
               ? STATUS_OK
               : status_fail(STATUS_INTERNAL, "HDF5 refuses the driver for images");
}
