/* export: which of a trained checkpoint's tensors is written, for every dtype asked for. */
#include "unit/config_text.h"

#include <jansson.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/safetensors.h"
#include "trainer/exchange/export.h"
#include "trainer/exchange/huggingface.h"

enum { PREFIXES = 4, MOST = 200 };
static const char *const prefixes[PREFIXES] = {"", "master/", "moment1/", "ema/"};

static struct comm self;

/* The weight is 1, its master 1.001, its average 2; moments are none of an export's business. */
static float value_of(int prefix)
{
    static const float values[PREFIXES] = {1, 1.001F, 77, 2};
    return values[prefix];
}

static enum status give(const struct checkpoint_slice *slice, int64_t offset, void *to,
                        size_t bytes)
{
    const float value = *(const float *)slice->context;
    (void)offset;
    for (size_t i = 0; i < bytes / dtype_bytes(slice->dtype); i++) {
        if (slice->dtype == DTYPE_F32) {
            ((float *)to)[i] = value;
        } else {
            ((uint16_t *)to)[i] = bf16_from_float(value);
        }
    }
    return STATUS_OK;
}

/* A checkpoint as a bf16 run with averaging leaves it, in folder c. */
static void make_checkpoint(int kinds)
{
    static struct checkpoint_slice slice[MOST * PREFIXES];
    static char name[MOST * PREFIXES][HF_NAME_BYTES + 16];
    static float value[PREFIXES];
    struct config config;
    struct hf_tensors tensors;
    char *text = NULL;
    size_t bytes = 0;
    int64_t count = 0;
    assert_int_equal(parse(&config, BASE, sizeof BASE - 1), STATUS_OK);
    assert_int_equal(hf_tensors_init(&tensors, &config), STATUS_OK);
    assert_in_range(tensors.count, 1, MOST);
    for (int p = 0; p < kinds; p++) {
        value[p] = value_of(p);
        for (int64_t i = 0; i < tensors.count; i++, count++) {
            const struct hf_tensor *tensor = &tensors.tensor[i];
            snprintf(name[count], sizeof name[count], "%s%s", prefixes[p], tensor->name);
            slice[count] = (struct checkpoint_slice){.name = name[count],
                                                     .dtype = p == 0 ? DTYPE_BF16 : DTYPE_F32,
                                                     .ndim = tensor->ndim,
                                                     .count = tensor->shape[0] * tensor->shape[1],
                                                     .read = give,
                                                     .context = &value[p]};
            memcpy(slice[count].shape, tensor->shape, sizeof tensor->shape);
        }
    }
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    config_print(&config, out);
    fclose(out);
    json_t *json = json_pack("{s:s}", "config", text);
    char *state = json_dumps(json, 0);
    assert_int_equal(checkpoint_write(&self, "c", 5, state, slice, count), STATUS_OK);
    json_decref(json);
    free(state);
    free(text);
    hf_tensors_free(&tensors);
    config_free(&config);
}

/* The first value of a tensor in folder h, and its dtype. */
static float first_value(const char *name, enum dtype *dtype)
{
    struct safetensors model;
    float wide = 0;
    uint16_t half = 0;
    assert_int_equal(safetensors_open(&model, "h"), STATUS_OK);
    const struct safetensors_tensor *tensor = safetensors_find(&model, name);
    assert_non_null(tensor);
    *dtype = tensor->dtype;
    if (tensor->dtype == DTYPE_F32) {
        assert_int_equal(safetensors_read(&model, tensor, 0, &wide, sizeof wide), STATUS_OK);
    } else if (tensor->dtype == DTYPE_BF16) {
        assert_int_equal(safetensors_read(&model, tensor, 0, &half, sizeof half), STATUS_OK);
        wide = bf16_to_float(half);
    }
    safetensors_close(&model);
    return wide;
}

static void test_what_is_chosen(void **state)
{
    (void)state;
    static const struct {
        int dtype;
        bool ema;
        enum dtype matrix, norm;
        float value;
    } cases[] = {
        {EXPORT_KEEP, false, DTYPE_BF16, DTYPE_BF16, 1},
        {EXPORT_BF16, false, DTYPE_BF16, DTYPE_BF16, 1},
        {EXPORT_F32, false, DTYPE_F32, DTYPE_F32, 1.001F},
        {EXPORT_FP8, false, DTYPE_E4M3, DTYPE_BF16, 1},
        {EXPORT_KEEP, true, DTYPE_BF16, DTYPE_BF16, 2},
        {EXPORT_F32, true, DTYPE_F32, DTYPE_F32, 2},
    };
    make_checkpoint(PREFIXES);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct export_options options = {.from = "c",
                                               .to = "h",
                                               .dtype = cases[i].dtype,
                                               .ema = cases[i].ema,
                                               .shard_bytes = SAFETENSORS_SHARD_BYTES};
        struct export_figures figures;
        enum dtype dtype = DTYPE_COUNT;
        assert_int_equal(export_run(&self, &options, &figures), STATUS_OK);
        assert_true(first_value("model.norm.weight", &dtype) == cases[i].value);
        assert_int_equal(dtype, cases[i].norm);
        const float matrix = first_value("model.layers.0.self_attn.q_proj.weight", &dtype);
        assert_int_equal(dtype, cases[i].matrix);
        if (dtype == DTYPE_E4M3) { /* made of the master, not of the rounded weight */
            const float scale =
                first_value("model.layers.0.self_attn.q_proj.weight_scale_inv", &dtype);
            assert_true(scale == 1.001F / 448.0F);
        } else {
            assert_true(matrix == cases[i].value);
        }
        assert_int_equal(io_remove_tree("h"), STATUS_OK);
    }
}

static void test_no_average(void **state)
{
    (void)state;
    const struct export_options options = {
        .from = "c", .to = "h", .ema = true, .shard_bytes = SAFETENSORS_SHARD_BYTES};
    struct export_figures figures;
    make_checkpoint(PREFIXES - 1);
    assert_int_equal(export_run(&self, &options, &figures), STATUS_MISMATCH);
    expect_message("c: no averaged weights in it");
    assert_false(io_exists("h"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(test_what_is_chosen),
        SCRATCH_TEST(test_no_average),
    };
    return comm_open(&self, "self") != STATUS_OK || cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
