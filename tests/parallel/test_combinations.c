/* Every legal combination of the axes of parallelism up to 8 ranks against one rank: a generated
 * list of pp x tp x cp x ep x etp x zero, schedules of pipelines taken in turn; tiny DeepSeek-V3
 * (dense first layer, selection bias, multi-token prediction) and Mixtral. What the list holds to
 * be legal must open. In FP8 too: a sample of those that leave parts of 128. Checkpoints pass from
 * some layouts to the next of them. A sample of the list, all of it with SWITCHYARD_FULL=1.
 * SWITCHYARD_SEED: another sample.
 */
#include <math.h>

#include "axis_check.h"

enum { STEPS = 10, SAMPLE = 12, MOST = 2048, RANKS = 8 };

struct division {
    int pp, tp, cp, ep, etp, zero;
    int schedule; /* of schedules; 0 with one stage */
    int batch;    /* of batches */
    bool v3;
};

static const char *const schedules[] = {
    "parallel.schedule=auto", "parallel.schedule=1f1b", "parallel.virtual_stages=2",
    "parallel.schedule=zero_bubble", "parallel.schedule=dualpipe_v"};
enum { SCHEDULES = 5, ZEROS = 3, VIRTUAL = 2, DUAL = 4 };

/* What a layout is held to. */
static const struct way {
    const char *what; /* is compared */
    const char *more; /* key; NULL: none */
    bool coded;       /* in FP8 */
    int steps;
    double loss, norm, later; /* allowed, relative, in step 1; of all in later ones */
} in_fp32 = {"losses and gradient norms", NULL, false, STEPS, 1e-6, 1e-5, 1e-5},
  same_bits = {"the same bits", "run.deterministic=layout", false, 3, 0, 0, 0},
  same_codes = {"the same bits, FP8", "run.deterministic=layout", true, 2, 0, 0, 0},
  /* Where sums in bf16 go another way, some choices of routers do (test_context.c); norms: up
     to 3.3e-2 measured. */
    in_fp8 = {"losses and gradient norms, FP8", NULL, true, 1, 3e-3, 6e-2, 0};

enum { CODED = 9 };
static const struct kind {
    const char *name, *text;
    const char *more[4];
    const char *coded[CODED]; /* with FP8: parts of 128 in two */
} kinds[] = {{"mixtral",
              TINY_MIXTRAL,
              {"model.num_attention_heads=4", "model.num_key_value_heads=4",
               "router.batch_loss_coef=0.02", "model.intermediate_size=16"},
              {"train.precision=fp8", "model.hidden_size=32", "model.head_dim=64",
               "model.intermediate_size=256"}},
             {"deepseek_v3",
              TINY_V3,
              {"model.num_attention_heads=4", "model.num_key_value_heads=4",
               "model.num_nextn_predict_layers=1", "router.bias_update_speed=0.01"},
              {"train.precision=fp8", "model.qk_nope_head_dim=64", "model.qk_rope_head_dim=64",
               "model.v_head_dim=64", "model.q_lora_rank=16", "model.kv_lora_rank=16",
               "model.intermediate_size=256", "model.moe_intermediate_size=256"}}};

/* Whether it should train: what the sizes of these models leave, and docs/parallelism.md's table.
 */
static bool legal(const struct division *l, int ranks)
{
    enum { HEADS = 4 };
    const int dense = l->pp * l->tp * l->cp, expert = l->pp * l->ep * l->etp;
    return ranks % dense == 0 && ranks % expert == 0 && HEADS % l->tp == 0;
}

/* Models are as deep as their stages ask: two blocks each, for schedules that halve stages. */
enum { DEPTHS = 3 };
static const char *const depths[DEPTHS] = {"model.num_hidden_layers=2", "model.num_hidden_layers=4",
                                           "model.num_hidden_layers=8"};

static int depth_of(const struct division *l)
{
    return l->pp == 1 ? 0 : l->pp == 2 ? 1 : 2;
}

/* Micro-batches of a step, of one sequence. A rank of dp has three, so that one is neither first
 * nor last, or for each stage as many; up to 8 of all ranks. */
enum { BATCHES = 3 };
static const int batches[BATCHES] = {3, 6, 8};
static const char *const batch_keys[BATCHES] = {"train.global_batch=3", "train.global_batch=6",
                                                "train.global_batch=8"};

static int batch_of(const struct division *l, int ranks)
{
    const int dp = ranks / (l->pp * l->tp * l->cp), own = 3 * l->pp;
    int batch = 0;
    while (batch < BATCHES - 1 && batches[batch] < own * dp) {
        batch++;
    }
    return batch;
}

/* The next that the layout has blocks and micro-batches for. */
static void next_schedule(struct division *l, int ranks, int *turn)
{
    const int own = batches[l->batch] * l->pp * l->tp * l->cp / ranks, /* of a rank of dp */
        blocks = 2 << depth_of(l);
    bool fits = l->pp == 1;
    l->schedule = 0;
    while (!fits) {
        l->schedule = 1 + (*turn)++ % (SCHEDULES - 1);
        const bool halved = l->schedule == VIRTUAL || l->schedule == DUAL;
        fits = (!halved || 2 * l->pp <= blocks) && (l->schedule != DUAL || own >= 2 * l->pp);
    }
}

/* list[MOST] <- all layouts of so many ranks. */
static int generate(struct division *list, int ranks)
{
    int count = 0, turn = 0;
    for (int code = 0; code < 1024 * ZEROS * 2; code++) {
        struct division l = {.pp = 1 << code % 4,
                             .tp = 1 << code / 4 % 4,
                             .cp = 1 << code / 16 % 4,
                             .ep = 1 << code / 64 % 4,
                             .etp = 1 << code / 256 % 4,
                             .zero = 1 + code / 1024 % ZEROS,
                             .v3 = code / 1024 / ZEROS == 1};
        const int dense = l.pp * l.tp * l.cp, expert = l.pp * l.ep * l.etp;
        if (ranks % dense != 0 || ranks % expert != 0) {
            continue;
        }
        l.batch = batch_of(&l, ranks);
        next_schedule(&l, ranks, &turn);
        if (legal(&l, ranks) && count < MOST) {
            list[count++] = l;
        }
    }
    return count;
}

/* Leaves `keep` of them, drawn. */
static int draw(struct division *list, int count, int keep)
{
    const char *text = getenv("SWITCHYARD_SEED");
    const uint64_t seed = text != NULL ? strtoull(text, NULL, 10) : 1;
    for (int i = 0; i < keep && i < count; i++) {
        const int with = i + (int)(rng_uniform(seed, (uint64_t)i) * (count - i));
        const struct division taken = list[with];
        list[with] = list[i];
        list[i] = taken;
    }
    return keep < count ? keep : count;
}

enum { SIZES = 3 };
static const char *const sizes[SIZES] = {"model.initializer_range=0.1", "train.sequence_length=32",
                                         "train.micro_batch=1"};

static enum status open_model(struct comm *world, struct tiny *tiny, const struct division *l,
                              int depth, const struct way *way)
{
    const struct kind *kind = &kinds[l->v3];
    const struct {
        const char *key;
        int value;
    } axes[] = {{"pp", l->pp}, {"tp", l->tp},   {"cp", l->cp},
                {"ep", l->ep}, {"etp", l->etp}, {"zero", l->zero}};
    const char *overrides[TINY_OVERRIDES] = {0};
    char axis[6][32];
    int count = 0;
    for (int i = 0; i < 6; i++) {
        snprintf(axis[i], sizeof axis[i], "parallel.%s=%d", axes[i].key, axes[i].value);
        overrides[count++] = axis[i];
    }
    for (int i = 0; i < 4 && kind->more[i] != NULL; i++) {
        overrides[count++] = kind->more[i];
    }
    for (int i = 0; i < SIZES; i++) {
        overrides[count++] = sizes[i];
    }
    overrides[count++] = batch_keys[l->batch];
    for (int i = 0; way->coded && i < CODED && kind->coded[i] != NULL; i++) {
        overrides[count++] = kind->coded[i];
    }
    overrides[count++] = depths[depth];
    overrides[count++] = schedules[l->schedule];
    overrides[count++] = way->more;
    CHECK(world, count <= TINY_OVERRIDES);
    return tiny_open(tiny, world, kind->text, overrides);
}

static enum status open_layout(struct comm *world, struct tiny *tiny, const struct division *l,
                               const struct way *way)
{
    return open_model(world, tiny, l, depth_of(l), way);
}

struct curve {
    double loss[STEPS], mtp[STEPS], aux[STEPS], norm[STEPS];
};

static void step(struct comm *world, struct tiny *tiny, int steps, struct curve *curve)
{
    for (int s = 0; s < steps; s++) {
        struct step_result result;
        CHECK(world, stepper_step(&tiny->stepper, s + 1, s * tiny->config.train.global_batch,
                                  &result) == STATUS_OK);
        curve->loss[s] = result.loss;
        curve->mtp[s] = result.mtp_loss;
        curve->aux[s] = result.aux_loss;
        curve->norm[s] = result.grad_norm;
    }
}

/* Families and depths are models of their own; with a batch, curves. */
enum { MODELS = 2 * DEPTHS, CURVES = MODELS * BATCHES };

static int model_of(const struct division *l)
{
    return DEPTHS * l->v3 + depth_of(l);
}

static int curve_of(const struct division *l)
{
    return BATCHES * model_of(l) + l->batch;
}

/* want[CURVES] <- the curves that the layouts have, each of one rank in a world of its own: as many
 * at a time as there are ranks. */
static void train_alone(struct comm *world, const struct division *list, int count,
                        const struct way *way, struct curve *want)
{
    static struct tiny tiny;
    struct comm alone = {0};
    int trained = 0, by[CURVES];
    comm_split(world, world->rank, 0, &alone);
    CHECK_EQUAL(world, alone.size, 1);
    for (int m = 0; m < CURVES; m++) {
        const int model = m / BATCHES;
        const struct division one = {1, 1, 1, 1, 1, 1, 0, m % BATCHES, model / DEPTHS == 1};
        by[m] = -1;
        for (int i = 0; i < count && by[m] < 0; i++) {
            by[m] = curve_of(&list[i]) == m ? trained++ % world->size : -1;
        }
        want[m] = (struct curve){0};
        if (by[m] == world->rank) {
            CHECK(world, open_model(&alone, &tiny, &one, model % DEPTHS, way) == STATUS_OK);
            step(&alone, &tiny, way->steps, &want[m]);
            tiny_close(&tiny);
        }
    }
    comm_free(&alone);
    for (int m = 0; m < CURVES; m++) {
        if (by[m] >= 0) {
            comm_broadcast(world, &want[m], sizeof want[m], by[m]);
        }
    }
}

/* --- comparing --- */

struct tally {
    int tried, wrong;
};

static bool differs(double got, double want, double allowed)
{
    return !(isnan(got) && isnan(want)) && !(fabs(got - want) <= allowed * fabs(want));
}

static void tell(const struct comm *world, const struct division *l, const char *problem)
{
    if (world->rank == 0) {
        fprintf(stderr, "%s pp=%d tp=%d cp=%d ep=%d etp=%d zero=%d %s at %d ranks: %s\n",
                kinds[l->v3].name, l->pp, l->tp, l->cp, l->ep, l->etp, l->zero,
                schedules[l->schedule], world->size, problem);
    }
}

/* Every rank has the same figures, so that all say the same. */
static void compare(const struct comm *world, const struct division *l, const struct curve *got,
                    const struct curve *want, const struct way *way, struct tally *tally)
{
    const struct {
        const char *name;
        const double *got, *want;
        double first; /* allowed in step 1 */
    } rows[] = {{"loss", got->loss, want->loss, way->loss},
                {"prediction loss", got->mtp, want->mtp, way->loss},
                {"balance loss", got->aux, want->aux, way->loss},
                {"gradient norm", got->norm, want->norm, way->norm}};
    for (int s = 0; s < way->steps; s++) {
        for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
            const double allowed = s == 0 ? rows[r].first : way->later;
            if (differs(rows[r].got[s], rows[r].want[s], allowed)) {
                char problem[128];
                snprintf(problem, sizeof problem, "%s of step %d: %.17g, on one rank %.17g",
                         rows[r].name, s + 1, rows[r].got[s], rows[r].want[s]);
                tell(world, l, problem);
                tally->wrong++;
                return;
            }
        }
    }
}

/* The checkpoints of a layout and of the one before. */
struct relay {
    char folder[64], last[160];
    int count;
};

/* What the layout before saved is loaded here, and is the same when it is saved again. */
static void pass_on(struct comm *world, struct tiny *tiny, struct relay *relay)
{
    char name[24], path[160];
    struct progress_state at;
    if (relay->count > 0) {
        CHECK(world, state_load(&tiny->model, relay->last, &at) == STATUS_OK);
    }
    snprintf(name, sizeof name, "%d", relay->count++);
    axis_save(world, tiny, relay->folder, name, path, sizeof path);
    if (relay->count > 1) {
        if (world->rank == 0) {
            axis_same(world, relay->last, path);
        }
        comm_barrier(world);
        CHECK(world, world->rank != 0 || io_remove_tree(relay->last) == STATUS_OK);
    }
    memcpy(relay->last, path, sizeof path);
}

/* relay: NULL, or where checkpoints pass. */
static void try_layout(struct comm *world, const struct division *l, const struct curve *want,
                       const struct way *way, struct relay *relay, struct tally *tally)
{
    static struct tiny tiny;
    struct curve got = {0};
    tally->tried++;
    if (open_layout(world, &tiny, l, way) != STATUS_OK) {
        tell(world, l, status_message());
        tally->wrong++;
        tiny_close(&tiny);
        return;
    }
    step(world, &tiny, way->steps, &got);
    compare(world, l, &got, want, way, tally);
    if (relay != NULL) {
        pass_on(world, &tiny, relay);
    }
    tiny_close(&tiny);
}

static void finish(struct comm *world, const struct way *way, const struct tally *tally)
{
    if (world->rank == 0) {
        printf("%s: %d layouts of %d ranks, %d wrong\n", way->what, tally->tried, world->size,
               tally->wrong);
    }
    CHECK_EQUAL(world, tally->wrong, 0);
}

/* How many of the list: a few in ./check, in ./check --full more, or all. */
static int wanted(int few, int many)
{
    return axis_full() ? many : few;
}

static void test_losses(struct comm *world)
{
    static struct division list[MOST];
    struct tally tally = {0};
    struct relay relay[MODELS] = {0};
    struct curve want[CURVES];
    const int few = world->size == RANKS ? SAMPLE : SAMPLE / 4,
              count = draw(list, generate(list, world->size), wanted(few, MOST));
    for (int m = 0; m < MODELS; m++) {
        axis_folder(world, relay[m].folder, sizeof relay[m].folder);
    }
    train_alone(world, list, count, &in_fp32, want);
    for (int i = 0; i < count; i++) {
        struct relay *passing = i % (axis_full() ? 29 : 4) == 0 ? &relay[model_of(&list[i])] : NULL;
        try_layout(world, &list[i], &want[curve_of(&list[i])], &in_fp32, passing, &tally);
    }
    for (int m = 0; m < MODELS; m++) {
        axis_folder_end(world, relay[m].folder);
    }
    finish(world, &in_fp32, &tally);
}

/* `keep` of a list, drawn, against one rank each. */
static void try_some(struct comm *world, struct division *list, int count, int keep,
                     const struct way *way)
{
    struct tally tally = {0};
    struct curve want[CURVES];
    const int kept = draw(list, count, keep);
    train_alone(world, list, kept, way, want);
    for (int i = 0; i < kept; i++) {
        try_layout(world, &list[i], &want[curve_of(&list[i])], way, NULL, &tally);
    }
    finish(world, way, &tally);
}

/* Those of at most so many parts. */
static int keep_parts(struct division *list, int count, int tp, int cp, int etp)
{
    int kept = 0;
    for (int i = 0; i < count; i++) {
        if (list[i].tp <= tp && list[i].cp <= cp && list[i].etp <= etp) {
            list[kept++] = list[i];
        }
    }
    return kept;
}

/* pp, ep and zero alone promise the bits of one rank. */
static void test_same_bits(struct comm *world)
{
    static struct division list[MOST];
    const int count = keep_parts(list, generate(list, world->size), 1, 1, 1),
              few = world->size == RANKS ? SAMPLE / 4 : 1;
    try_some(world, list, count, wanted(few, MOST), &same_bits);
    try_some(world, list, count, wanted(1, SAMPLE / 2), &same_codes);
}

/* In FP8 all axes but cp want parts of 128. */
static void test_coded(struct comm *world)
{
    static struct division list[MOST];
    const int count = keep_parts(list, generate(list, world->size), 2, RANKS, 2);
    try_some(world, list, count, wanted(2, SAMPLE), &in_fp8);
}

/* Sums of gradients over a group that are left out are found; pp, tp and cp have tests of their own
 * (test_pipe.c, test_tensor.c, test_context.c). */
static void test_verify(struct comm *world)
{
    static const struct {
        struct division division;
        size_t group;
    } cases[] = {
        {{1, 1, 1, 1, 1, 1, 0, 2, true}, offsetof(struct mesh, stage)}, /* dense, of dp */
        {{1, 1, 1, 1, 1, 1, 0, 2, false}, offsetof(struct mesh, edp)},
        {{1, 1, 1, 2, 1, 1, 0, 2, false}, offsetof(struct mesh, edp)},
        {{1, 1, 1, 1, 2, 1, 0, 2, true}, offsetof(struct mesh, edp)},
    };
    static struct tiny tiny;
    char folder[64];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct division *d = &cases[i].division;
        if (world->size < 2 * d->ep * d->etp || world->size > 4) {
            continue;
        }
        axis_folder(world, folder, sizeof folder);
        for (int lies = 0; lies < 2; lies++) {
            CHECK(world, open_layout(world, &tiny, d, &in_fp32) == STATUS_OK);
            const bool good = axis_verified(world, &tiny, folder, cases[i].group, lies == 1);
            CHECK(world, world->rank != 0 || good == (lies == 0));
        }
        axis_folder_end(world, folder);
    }
}

int main(void)
{
    static const struct ranks_test tests[] = {RANKS_TEST(test_losses), RANKS_TEST(test_same_bits),
                                              RANKS_TEST(test_coded), RANKS_TEST(test_verify)};
    return RANKS_MAIN(tests);
}
