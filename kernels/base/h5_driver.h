/* h5_driver: what drivers of HDF5's files have in common (h5_image, h5_reader): its developer
 * header, two of their functions, and how an access list gets one.
 */
#ifndef KERNELS_BASE_H5_DRIVER_H
#define KERNELS_BASE_H5_DRIVER_H

#include <hdf5.h>
#include <stdbool.h>
#if H5_VERSION_GE(1, 13, 0)
#include <H5FDdevelop.h>
#endif

static inline int h5_driver_compare(const H5FD_t *a, const H5FD_t *b)
{
    return (a > b) - (a < b);
}

/* As HDF5's own file driver: metadata comes and goes in few pieces. */
static inline herr_t h5_driver_query(const H5FD_t *part, unsigned long *flags)
{
    (void)part;
    *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
             H5FD_FEAT_AGGREGATE_SMALLDATA;
    return 0;
}

/* Files opened with the access list go through the driver; info: [driver->fapl_size] bytes that its
 * `open` gets. */
static inline bool h5_driver_set(hid_t access, const H5FD_class_t *driver, const void *info)
{
    const hid_t id = H5FDregister(driver);
    const bool good = id >= 0 && H5Pset_driver(access, id, info) >= 0;
    if (id >= 0) {
        H5FDunregister(id); /* the list and the file hold it from here on */
    }
    return good;
}

#endif
