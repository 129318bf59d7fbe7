#include "checkpoints/h5.h"

#include <stdio.h>
#include <string.h>

enum { ALIGN_FROM = 65536, ALIGN_TO = 4096, MAX_NAME = 256 };

enum status h5_create(hid_t *file, struct h5_image *image)
{
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    const hid_t access = H5Pcreate(H5P_FILE_ACCESS), root = H5Pcreate(H5P_FILE_CREATE);
    H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);
    H5Pset_alignment(access, ALIGN_FROM, ALIGN_TO);
    H5Pset_obj_track_times(root, false);
    const enum status status = h5_image_access(access, image);
    *file = status == STATUS_OK ? H5Fcreate("image", H5F_ACC_TRUNC, root, access) : -1;
    H5Pclose(root);
    H5Pclose(access);
    TRY(status);
    return *file >= 0 ? STATUS_OK
                      : status_fail(STATUS_RESOURCE, "HDF5 cannot begin a file: out of memory?");
}

enum status h5_finish(hid_t file, const struct h5_image *image, bool good, const char *name)
{
    const bool closed = H5Fclose(file) >= 0;
    return closed && good && !image->failed
               ? STATUS_OK
               : status_fail(STATUS_RESOURCE, "%s: HDF5 could not lay it out: out of memory?",
                             name);
}

/* A 16-bit float; order matters: fields first, then the size that holds them. */
static hid_t float_16(size_t exponent_bits, size_t mantissa_bits, size_t bias)
{
    const hid_t type = H5Tcopy(H5T_IEEE_F32LE);
    H5Tset_fields(type, 15, mantissa_bits, exponent_bits, 0, mantissa_bits);
    H5Tset_precision(type, 16);
    H5Tset_size(type, 2);
    H5Tset_ebias(type, bias);
    return type;
}

hid_t h5_type(enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_BF16:
        return float_16(8, 7, 127);
    case DTYPE_F16:
        return float_16(5, 10, 15);
    case DTYPE_E4M3:
        return H5Tcopy(H5T_STD_U8LE);
    default:
        return H5Tcopy(H5T_IEEE_F32LE);
    }
}

hid_t h5_dataset_list(void)
{
    const hid_t list = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_fill_time(list, H5D_FILL_TIME_NEVER);
    H5Pset_alloc_time(list, H5D_ALLOC_TIME_EARLY);
    H5Pset_obj_track_times(list, false);
    return list;
}

void h5_make_groups(hid_t file, const char *name)
{
    const hid_t list = H5Pcreate(H5P_GROUP_CREATE);
    H5Pset_obj_track_times(list, false);
    for (const char *end = strchr(name, '/'); end != NULL; end = strchr(end + 1, '/')) {
        char part[MAX_NAME];
        snprintf(part, sizeof part, "%.*s", (int)(end - name), name);
        if (H5Lexists(file, part, H5P_DEFAULT) <= 0) {
            H5Gclose(H5Gcreate2(file, part, H5P_DEFAULT, list, H5P_DEFAULT));
        }
    }
    H5Pclose(list);
}

static void set(hid_t object, const char *name, hid_t type, hid_t space, const void *value)
{
    const hid_t attribute = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    H5Awrite(attribute, type, value);
    H5Aclose(attribute);
    H5Sclose(space);
}

void h5_set_ints(hid_t object, const char *name, const int64_t *values, int count)
{
    const hsize_t dim = (hsize_t)count;
    set(object, name, H5T_STD_I64LE, H5Screate_simple(1, &dim, NULL), values);
}

void h5_set_text(hid_t object, const char *name, const char *value)
{
    const hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, strlen(value) + 1);
    set(object, name, type, H5Screate(H5S_SCALAR), value);
    H5Tclose(type);
}
