/* h5_image: a file that HDF5 laid out in memory is the file it would have written, and what it only
 * reserves takes no memory. */
#include "unit/scratch.h"

#include "checkpoints/h5.h"

static const char name[] = "out.h5";

/* Datasets of these many floats each; the first values of small ones are written by HDF5 itself. */
static void lay_out(hid_t file, const int64_t *counts, int datasets)
{
    for (int i = 0; i < datasets; i++) {
        char path[64];
        const hsize_t count = (hsize_t)counts[i];
        const hid_t space = H5Screate_simple(1, &count, NULL), list = h5_dataset_list();
        snprintf(path, sizeof path, "group.%d/set/x", i % 7);
        snprintf(path + strlen(path), sizeof path - strlen(path), "%d", i);
        h5_make_groups(file, path);
        const hid_t set =
            H5Dcreate2(file, path, H5T_IEEE_F32LE, space, H5P_DEFAULT, list, H5P_DEFAULT);
        assert_true(set >= 0);
        h5_set_ints(set, "count", &counts[i], 1);
        if (count < 100) {
            float values[100];
            for (int v = 0; v < 100; v++) {
                values[v] = (float)(i * 1000 + v);
            }
            assert_true(H5Dwrite(set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >=
                        0);
        }
        H5Dclose(set);
        H5Pclose(list);
        H5Sclose(space);
    }
}

static void write_out(const struct h5_image *image)
{
    char piece[1000];
    struct io_file file;
    assert_int_equal(io_create(&file, name), STATUS_OK);
    for (int64_t at = 0; at < image->bytes; at += (int64_t)sizeof piece) {
        const int64_t left = image->bytes - at;
        const size_t some = left < (int64_t)sizeof piece ? (size_t)left : sizeof piece;
        memset(piece, 0x55, sizeof piece);
        h5_image_read(image, at, piece, some);
        assert_int_equal(io_write(&file, piece, some), STATUS_OK);
    }
    assert_int_equal(io_close(&file), STATUS_OK);
}

static void test_same_as_hdf5_writes(void **state)
{
    (void)state;
    static const int64_t counts[] = {10, 99, 3000, 1, 20000, 50, 50, 7, 40000, 33};
    enum { DATASETS = sizeof counts / sizeof counts[0] };
    struct h5_image image = {0};
    hid_t file = -1;
    assert_int_equal(h5_create(&file, &image), STATUS_OK);
    lay_out(file, counts, DATASETS);
    assert_int_equal(h5_finish(file, &image, true, name), STATUS_OK);
    write_out(&image);
    /* The same by HDF5's own driver. */
    const hid_t access = H5Pcreate(H5P_FILE_ACCESS), root = H5Pcreate(H5P_FILE_CREATE);
    H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);
    H5Pset_alignment(access, 65536, 4096);
    H5Pset_obj_track_times(root, false);
    file = H5Fcreate("plain.h5", H5F_ACC_TRUNC, root, access);
    lay_out(file, counts, DATASETS);
    H5Fclose(file);
    H5Pclose(root);
    H5Pclose(access);
    char *a = NULL, *b = NULL;
    size_t a_bytes = 0, b_bytes = 0;
    assert_int_equal(io_read_file(name, &a, &a_bytes, 1 << 30), STATUS_OK);
    assert_int_equal(io_read_file("plain.h5", &b, &b_bytes, 1 << 30), STATUS_OK);
    assert_int_equal(a_bytes, b_bytes);
    assert_memory_equal(a, b, a_bytes);
    free(a);
    free(b);
    h5_image_free(&image);
    h5_image_free(&image);
}

/* A terabyte reserved: the address is right, and it takes a few megabytes. */
static void test_reserved_space_is_free(void **state)
{
    (void)state;
    static const int64_t counts[] = {(int64_t)1 << 38, 10};
    struct h5_image image = {0};
    hid_t file = -1;
    assert_int_equal(h5_create(&file, &image), STATUS_OK);
    lay_out(file, counts, 2);
    assert_int_equal(h5_finish(file, &image, true, name), STATUS_OK);
    assert_true(image.bytes > counts[0] * 4 && image.bytes < counts[0] * 4 + (1 << 20));
    char zeros[64], expected[64] = {0};
    memset(zeros, 1, sizeof zeros);
    h5_image_read(&image, counts[0] * 2, zeros, sizeof zeros);
    assert_memory_equal(zeros, expected, sizeof zeros);
    h5_image_free(&image);
}

static void test_failures(void **state)
{
    (void)state;
    struct h5_image image = {0};
    hid_t file = -1;
    assert_int_equal(h5_create(&file, &image), STATUS_OK);
    assert_int_equal(h5_finish(file, &image, false, name), STATUS_RESOURCE);
    expect_message(name);
    h5_image_free(&image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(test_same_as_hdf5_writes),
        SCRATCH_TEST(test_reserved_space_is_free),
        SCRATCH_TEST(test_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
