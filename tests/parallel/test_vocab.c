/* The embedding and the head divided over the ranks of tp: numbers of which every sum and
 * exponential is exact, so that what 1, 2 and 4 ranks give is compared with ==, of a vocabulary of
 * 61 which none of them divides; and the losses of an evaluation against one rank.
 */
#include <math.h>

#include "axis_check.h"
#include "trainer/model/block.h"

enum { COUNT = 2, TOKENS = 8, ALL = COUNT * TOKENS, VOCAB = 61, WIDTH = 16, LIKELY = 4 };

/* Rows of the head whose logit is 0, one of them on each of four ranks; others have FAR. */
static const int32_t likely[LIKELY] = {3, 17, 40, 60};
static const float FAR = -2048;

static bool is_likely(int64_t v)
{
    for (int i = 0; i < LIKELY; i++) {
        if (v == likely[i]) {
            return true;
        }
    }
    return false;
}

static float embedding_of(int64_t v, int64_t i)
{
    return (float)((v * 5 + i * 3) % 17 - 8);
}

/* Column 0 is the logit, for every token's is 1 there and 0 elsewhere. */
static float head_of(int64_t v, int64_t i)
{
    return i == 0 ? (is_likely(v) ? 0 : FAR) : (float)((v + i * 7) % 9 - 4);
}

static int32_t id_of(int64_t n)
{
    return (int32_t)(n * 19 % VOCAB);
}

/* Every fourth does not count, likely ones, and one that is not. */
static int32_t label_of(int64_t n)
{
    return n % 4 == 3 ? -1 : n == 5 ? 30 : likely[n % LIKELY];
}

static float gradient_of(int64_t n, int64_t i)
{
    return (float)((n * 11 + i) % 15 - 7);
}

static void open_tiny(struct comm *world, struct tiny *tiny, int tp)
{
    char layout[32];
    snprintf(layout, sizeof layout, "parallel.tp=%d", tp);
    const char *overrides[TINY_OVERRIDES] = {layout, "model.num_attention_heads=4",
                                             "model.num_key_value_heads=4",
                                             "model.num_nextn_predict_layers=1"};
    CHECK(world, tiny_open(tiny, world, TINY_V3, overrides) == STATUS_OK);
}

static void fill(struct tensor w, float (*value)(int64_t, int64_t), int64_t first)
{
    for (int64_t i = 0; i < tensor_count(&w); i++) {
        ((float *)w.data)[i] = value(first + i / WIDTH, i % WIDTH);
    }
}

/* This rank's tokens, in its own order: the number among all. */
static int64_t token(const struct model *model, int64_t own)
{
    const int64_t share = model->tp.share;
    return own / share * TOKENS + tp_first(&model->tp) + own % share;
}

static void check_embedding(struct comm *world, struct model *model, const struct block_call *call)
{
    const struct params *params = &model->params;
    const int64_t own = block_tokens(model, call);
    const enum param_group group = params->embedding;
    const struct tensor y = model_act(model, model->stream, own, WIDTH),
                        dy = model_act(model, model->dstream, own, WIDTH),
                        dw = model_grad(model, group, params->embed, params->vocab, WIDTH);
    fill(model_weight(model, group, params->embed, params->vocab, WIDTH), embedding_of,
         params->vocab_first);
    for (int64_t n = 0; n < ALL; n++) {
        model->input.ids[n] = id_of(n);
    }
    vocab_own_ids(model, model->input.ids, ALL);
    vocab_embed(model, call, y);
    for (int64_t i = 0; i < own * WIDTH; i++) {
        const int64_t n = token(model, i / WIDTH);
        CHECK(world, ((float *)y.data)[i] == embedding_of(id_of(n), i % WIDTH));
        ((float *)dy.data)[i] = gradient_of(n, i % WIDTH);
    }
    model_zero_grads(model);
    for (int i = 0; i < 2; i++) {
        vocab_embed_backward(model, call, dy);
    }
    for (int64_t i = 0; i < params->vocab * WIDTH; i++) {
        float sum = 0;
        for (int64_t n = 0; n < ALL; n++) {
            sum += id_of(n) == params->vocab_first + i / WIDTH ? 2 * gradient_of(n, i % WIDTH) : 0;
        }
        CHECK(world, ((float *)dw.data)[i] == sum);
    }
}

/* d loss / d logit v of token n, for a loss_scale of 1: a fourth of each likely one is certain. */
static float logit_gradient(int64_t n, int64_t v)
{
    return label_of(n) < 0 ? 0 : (is_likely(v) ? 0.25F : 0) - (v == label_of(n) ? 1.0F : 0);
}

static void check_gradients(struct comm *world, const struct model *model, struct tensor dx,
                            struct tensor dw, float scale)
{
    const int64_t first = model->params.vocab_first;
    for (int64_t i = 0; i < tensor_count(&dx); i++) {
        float sum = 0;
        for (int64_t v = 0; v < VOCAB; v++) {
            sum += scale * logit_gradient(token(model, i / WIDTH), v) * head_of(v, i % WIDTH);
        }
        CHECK(world, ((float *)dx.data)[i] == sum);
    }
    for (int64_t i = 0; i < tensor_count(&dw); i++) {
        float sum = 0;
        for (int64_t n = 0; n < ALL; n++) {
            sum += i % WIDTH == 0 ? scale * logit_gradient(n, first + i / WIDTH) : 0;
        }
        CHECK(world, ((float *)dw.data)[i] == sum);
    }
}

static void check_loss(struct comm *world, struct model *model, const struct block_call *call)
{
    const struct params *params = &model->params;
    const int64_t own = block_tokens(model, call), counted = ALL - ALL / 4;
    const struct tensor x = model_act(model, model->final_norm, own, WIDTH),
                        dx = model_act(model, model->dwork, own, WIDTH), none = {0},
                        dw = model_grad(model, params->divided, params->head, params->vocab, WIDTH);
    const float scale = 0.5F;
    const double want = (double)counted * log(LIKELY) - (double)FAR;
    fill(model_weight(model, params->divided, params->head, params->vocab, WIDTH), head_of,
         params->vocab_first);
    for (int64_t i = 0; i < own * WIDTH; i++) {
        ((float *)x.data)[i] = i % WIDTH == 0 ? 1 : 0;
    }
    for (int64_t n = 0; n < ALL; n++) {
        model->input.labels[n] = label_of(n);
    }
    for (int pieces = 0; pieces < 2; pieces++) { /* the second time of five tokens at a time */
        for (int backward = 0; backward < 2; backward++) {
            double loss = 0, sum = 0;
            for (int64_t n = 0; n < ALL; n++) { /* as they are added up */
                sum += label_of(n) < 0 ? 0 : log(LIKELY) - (double)head_of(label_of(n), 0);
            }
            model_zero_grads(model);
            vocab_loss(model, call, &loss, backward ? dx : none, x, scale);
            block_sum(model, &loss, 1, DTYPE_F64);
            CHECK(world, fabs(loss - want) < 1e-9 * want && (pieces > 0 || loss == sum));
        }
        check_gradients(world, model, dx, dw, scale);
        model->vocab.rows = pieces == 0 && model->vocab.rows > 5 ? 5 : model->vocab.rows;
    }
}

static void test_exact(struct comm *world)
{
    static struct tiny tiny;
    open_tiny(world, &tiny, world->size);
    const struct block_call call = {
        .batch = &tiny.model.input, .count = COUNT, .sequence = TOKENS, .length = TOKENS};
    check_embedding(world, &tiny.model, &call);
    check_loss(world, &tiny.model, &call);
    tiny_close(&tiny);
}

static double evaluate(struct comm *world, int tp)
{
    static struct tiny tiny;
    static int32_t storage[4 * ALL];
    open_tiny(world, &tiny, tp);
    struct batch batch = batch_view(storage, ALL);
    loader_batch(&tiny.loader, &batch, 0, COUNT);
    model_run(&tiny.model, &batch, COUNT, TOKENS, NULL);
    const double loss = model_read_losses(&tiny.model).loss;
    tiny_close(&tiny);
    return loss;
}

static void test_evaluation(struct comm *world)
{
    struct comm alone = {0};
    comm_split(world, world->rank, 0, &alone);
    const double one = evaluate(&alone, 1), all = evaluate(world, world->size);
    CHECK(world, fabs(all - one) <= 1e-6 * one);
    comm_free(&alone);
}

static void test_refused(struct comm *world)
{
    struct tiny tiny = {0};
    const char *overrides[TINY_OVERRIDES] = {"parallel.tp=4", "model.num_attention_heads=4",
                                             "model.num_key_value_heads=4", "model.vocab_size=3"};
    CHECK_EQUAL(world, tiny_config(&tiny.config, TINY_V3, overrides), STATUS_USAGE);
    CHECK_MESSAGE(world, "is more than model.vocab_size 3");
    config_free(&tiny.config);
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_exact),
        RANKS_TEST(test_evaluation),
        RANKS_TEST(test_refused),
    };
    return RANKS_MAIN(tests);
}
