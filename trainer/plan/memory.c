#include "trainer/plan/memory.h"

#include <string.h>

#include "kernels/device.h"
#include "trainer/saving.h"

/* fp8.first_bf16 and last_bf16 of the blocks [first, end), of which the last `mtp` are of
 * multi-token prediction, which the latter speaks of too. */
static void set_bf16_layers(struct config *own, const struct config *config, int64_t layers,
                            int64_t first, int64_t end, int64_t mtp)
{
    const int64_t last = config->fp8.last_bf16, head = config->fp8.first_bf16,
                  tail = layers - last > first ? layers - last : first;
    own->fp8.first_bf16 = (head < end ? head : end) - first;
    own->fp8.first_bf16 = own->fp8.first_bf16 > 0 ? own->fp8.first_bf16 : 0;
    own->fp8.last_bf16 = last > 0 && end - mtp > tail ? end - mtp - tail : 0;
    if (last > 0 && mtp > 0 && own->fp8.last_bf16 == 0) {
        own->fp8.last_bf16 = 1; /* there is no layer: the modules stay in bf16 */
    }
}

/* The config of a model that is the stage. */
static struct config config_of(const struct config *config, const struct architecture *arch,
                               const struct stage *stage)
{
    struct config own = *config; /* its texts are borrowed */
    const int64_t end = stage->first + stage->blocks;
    const int64_t dense = arch->dense_layers < end ? arch->dense_layers : end;
    const int64_t behind = stage->first > arch->layers ? stage->first : arch->layers,
                  mtp = end > behind ? end - behind : 0;
    own.model.num_hidden_layers = stage->blocks - mtp;
    own.model.first_k_dense_replace = dense > stage->first ? dense - stage->first : 0;
    own.model.num_nextn_predict_layers = mtp;
    set_bf16_layers(&own, config, arch->layers, stage->first, end, mtp);
    if (!stage->embedding || !stage->head) {
        const bool one = stage->embedding || stage->head;
        own.model.vocab_size = mtp > 0 ? config->model.vocab_size
                               : one   ? (config->model.vocab_size + 1) / 2
                                       : 1; /* the model has both: half as long, they are one */
    }
    return own;
}

/* What a run would find, of groups that begin with a machine. */
static struct nodes nodes_of(const struct config *config, int ranks)
{
    const bool flat = model_node_dispatch(config) == NODES_FLAT;
    return nodes_expect(ranks, flat ? ranks : (int)hardware_ranks_of_node(config));
}

/* dp: of a stage, ranks of tp counted. */
static struct mesh mesh_of(const struct config *config, int64_t dp, int64_t ep)
{
    const int64_t tp = config->parallel.tp, cp = config->parallel.cp, etp = config->parallel.etp;
    return (struct mesh){.stage = {.size = (int)dp, .name = "stage"},
                         .dp = {.size = (int)(dp / tp / cp), .name = "dp"},
                         .replicas = {.size = (int)(dp / tp), .name = "replicas"},
                         .cp = {.size = (int)cp, .name = "cp"},
                         .tp = {.size = (int)tp, .name = "tp"},
                         .ep = {.size = (int)ep, .name = "ep"},
                         .etp = {.size = (int)etp, .name = "etp"},
                         .experts = {.size = (int)(ep * etp), .name = "experts"},
                         .nodes = nodes_of(config, (int)(ep * etp)),
                         .edp = {.size = (int)(dp / ep / etp), .name = "edp"},
                         .staged = hardware_stages(config)};
}

static enum status measure(struct stage_memory *memory, const struct config *config,
                           struct mesh *mesh, struct device *device, bool saves)
{
    struct model model;
    struct saving_size size = {0};
    mesh->world = &mesh->stage;
    *memory = (struct stage_memory){0};
    enum status status = model_measure(&model, config, mesh, device, config->train.micro_batch,
                                       config->train.sequence_length, true);
    if (status == STATUS_OK && saves) {
        status = saving_measure(&size, &model);
        memory->staging = size.bytes;
        memory->tensors = size.tensors;
        memory->stages = size.beside;
    }
    memcpy(memory->kind, model.memory, sizeof memory->kind);
    memory->host = model.offload.on ? model.offload.arena.used : 0;
    for (int g = 0; g < model.params.groups; g++) {
        memory->elements[g] = model.group[g].zero.count;
        memory->spare += reduction_spare(&model, (enum param_group)g);
        memory->muon[g] = model.group[g].muon.load;
    }
    model_free(&model);
    return status;
}

/* The loss's of a rank that has the head, or what of it config_of's model has. */
static size_t loss_scratch(const struct config *config, int64_t vocab)
{
    struct vocab_scratch scratch;
    struct arena arena = {0};
    vocab_scratch_layout(
        &scratch, config->train.micro_batch * config->train.sequence_length / config->parallel.cp,
        vocab, config->parallel.tp, config->train.precision != CONFIG_FP32, &arena);
    return arena.used;
}

enum status memory_of_stage(struct stage_memory *memory, const struct config *config,
                            const struct stage *stage, struct device *device, int64_t dp,
                            int64_t ep, bool saves)
{
    struct architecture arch;
    struct mesh mesh = mesh_of(config, dp, ep);
    architecture_init(&arch, config);
    const bool whole = stage->blocks == architecture_blocks(&arch);
    const struct config own = whole ? *config : config_of(config, &arch, stage);
    TRY(measure(memory, &own, &mesh, device, saves));
    if (own.model.vocab_size < config->model.vocab_size) {
        const size_t loss = loss_scratch(config, config->model.vocab_size);
        memory->kind[MODEL_SCRATCH] += stage->head ? loss : 0;
        memory->kind[MODEL_SCRATCH] -= loss_scratch(config, own.model.vocab_size);
    }
    return STATUS_OK;
}

enum status memory_of_rank(struct stage_memory *memory, const struct config *config, int64_t pp,
                           int64_t rank, struct device *device, int64_t dp, int64_t ep, bool saves)
{
    struct mesh mesh = mesh_of(config, dp, ep);
    const bool end = rank == 0 || rank == pp - 1;
    mesh.pp = (struct comm){.rank = (int)rank, .size = (int)pp, .name = "pp"};
    const int copies = mesh.replicas.size;
    mesh.ends = (struct comm){.size = end ? 2 * copies : copies, .name = "ends"};
    return measure(memory, config, &mesh, device, saves);
}

/* GPU: what the driver keeps for a process, cuBLASLt's workspace (gemm_cublaslt.c), NCCL's buffers
 * of a group, and the limit of cuDNN's scratch (attention_cudnn.c). */
static const size_t MIB = (size_t)1 << 20, GPU_CONTEXT_MIB = 600, GPU_PRODUCTS_MIB = 32,
                    GPU_GROUP_MIB = 350, GPU_ATTENTION_MIB = 1024;
/* CPU: the program with its libraries, what a thread adds, what Open MPI has of its own where there
 * are several ranks, and the rows whose logits are in memory at a time
 * (kernels/cpu/cross_entropy.c); of the wide head, the bytes of powers of a column, and the columns
 * of a piece of them (kernels/cpu/head_wide.c). Measured: docs/plan.md. */
static const size_t CPU_PROGRAM_MIB = 34, CPU_THREAD_MIB = 1, CPU_RANKS_MIB = 13,
                    CPU_LOSS_ROWS = 1024, CPU_WIDE_BYTES = 4096, CPU_PIECE_COLUMNS = 128,
                    CPU_VAST_RATIO = 16;
/* Of the wide kernel (kernels/cpu/gemm_wide.c): tasks of a thread; rows of a tile; what a thread
 * packs of B, columns where A is read as it stands, columns and bytes where its rows are packed,
 * too, in room for so many at a time. */
static const size_t CPU_TASKS = 16, CPU_TILE_ROWS = 112, CPU_NEAR_COLUMNS = 128,
                    CPU_FAR_COLUMNS = 256, CPU_FAR_BYTES = (size_t)2 << 20, CPU_PACKED_ROWS = 64;
/* Of its deep products: panels and sums of a thread; bytes of k from which on others than gradients
 * of weights are deep; rows up to which these are. */
static const size_t CPU_DEEP_BYTES = (size_t)2560 << 10, CPU_DEEP_K_BYTES = 16384,
                    CPU_DEEP_M = 4096;
/* Tokens of the busiest expert, of an even share. */
static const size_t CPU_BUSIEST = 4;
/* Experts for each chosen one up to which a router's gradients are one product
 * (kernels/cpu/router_logits.c). */
static const int64_t CPU_FEW_EXPERTS = 4;
/* Of a save, for each tensor of the checkpoint: what HDF5 and the manifest have of it. Measured. */
static const size_t SAVED_TENSOR_BYTES = 24 << 10;

/* Columns of keys that all heads share. */
static size_t shared_of_keys(const struct architecture *arch)
{
    return arch->kv_rank > 0 ? (size_t)arch->rope_dim : 0;
}

/* Tokens that one attention has queries and keys of: with cp a chunk. */
static size_t attended_tokens(const struct config *config)
{
    const size_t t = (size_t)config->train.sequence_length, cp = (size_t)config->parallel.cp;
    return cp > 1 ? t / (CP_PIECES * cp) : t;
}

/* Scratch of own kernels (attention_backward.cu) for a part of a sequence; cuDNN takes none. */
static size_t parts_of_gpu(const struct config *config, const struct architecture *arch)
{
    return sizeof(float) * attended_tokens(config) *
           (size_t)(arch->heads + arch->kv_heads * (int64_t)shared_of_keys(arch)) /
           (size_t)config->parallel.tp;
}

static size_t outside_of_gpu(const struct config *config, const struct architecture *arch)
{
    const size_t t = (size_t)config->train.sequence_length, b = (size_t)config->train.micro_batch,
                 square = 2 * b * (size_t)arch->heads * t * t,
                 linear = 8 * b * (size_t)arch->heads * t * (size_t)arch->qk_dim,
                 own = 4 * b * (size_t)arch->heads * t * (size_t)(1 + arch->rope_dim),
                 wanted = config->run.deterministic != CONFIG_DETERMINISTIC_OFF ? square : linear,
                 most = GPU_ATTENTION_MIB * MIB;
    const bool alone = config->cluster.nodes == 1 && config->cluster.gpus_per_node == 1;
    const size_t rest = (GPU_CONTEXT_MIB + (alone ? 0 : 3 * GPU_GROUP_MIB)) * MIB;
    if (config->run.deterministic == CONFIG_DETERMINISTIC_LAYOUT) { /* no libraries */
        return rest + own;
    }
    if (config->parallel.cp > 1) {
        return rest + GPU_PRODUCTS_MIB * MIB + parts_of_gpu(config, arch);
    }
    return rest + GPU_PRODUCTS_MIB * MIB + (wanted < most ? wanted : most);
}

/* What attention has: in every thread a head's rows and their gradients (kernels/cpu/attention.c:
 * 5.5 of each), for all threads sums over heads. */
static size_t attention_of_cpu(const struct config *config, const struct architecture *arch,
                               size_t threads)
{
    enum { ROWS = 64, COLUMNS = 32 }; /* tiles */
    const size_t t = (attended_tokens(config) + ROWS - 1) / ROWS * ROWS,
                 qk = (size_t)(arch->qk_dim + COLUMNS - 1) / COLUMNS * COLUMNS,
                 v = (size_t)(arch->v_dim + COLUMNS - 1) / COLUMNS * COLUMNS,
                 groups = (size_t)(arch->kv_heads / config->parallel.tp),
                 samples = (size_t)(config->parallel.cp > 1 ? 1 : config->train.micro_batch),
                 key = (size_t)(arch->qk_dim + arch->v_dim) - shared_of_keys(arch),
                 sums = (arch->heads > arch->kv_heads ? groups * key : 0) + shared_of_keys(arch);
    return sizeof(float) * t * (threads * (11 * (qk + v) / 2 + 1) + samples * sums);
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Whether this CPU's products of bf16 go by f32: panels of them take twice the room. */
static bool widens(const struct hardware *hardware)
{
    const struct device_info *info = device_info(hardware->device);
    for (int i = 0; i < info->fact_count; i++) {
        if (strcmp(info->fact[i].key, "bf16_gemm") == 0) {
            return strcmp(info->fact[i].value, "native") != 0;
        }
    }
    return false;
}

/* Bytes of an element in a panel that the wide kernel has packed. */
static size_t panel_of(const struct config *config, bool widened)
{
    return widened || config->train.precision == CONFIG_FP32 ? sizeof(float) : sizeof(uint16_t);
}

static size_t most(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* A thread's panels of both operands of a gradient of weights over so many tokens, of B `columns`.
 */
static size_t far_panels(size_t tokens, size_t columns, size_t panel)
{
    return least(columns * tokens * panel, most(CPU_FAR_BYTES, CPU_FAR_COLUMNS * tokens * panel)) +
           CPU_PACKED_ROWS * tokens * panel;
}

/* A thread's panels and sums of a layer's products: of experts, and of gradients of weights with so
 * many rows that they are not deep. Any but these have room in what a deep product has. */
static size_t layers_of_cpu(const struct config *config, const struct architecture *arch,
                            bool widened, size_t rows)
{
    const size_t local = (size_t)(arch->experts / config->parallel.ep),
                 inner = (size_t)(arch->expert_width / config->parallel.etp),
                 width = (size_t)arch->width, slots = rows * (size_t)arch->top_k,
                 dense = 2 * (size_t)arch->dense_width, panel = panel_of(config, widened),
                 longest = most(width, 2 * inner),
                 busiest = local > 0 ? least(slots, CPU_BUSIEST * slots / local) : 0,
                 experts = local > 0 ? most(CPU_NEAR_COLUMNS * longest * panel,
                                            far_panels(busiest, most(width, inner), panel))
                                     : 0;
    return CPU_DEEP_BYTES + most(experts, dense > CPU_DEEP_M ? far_panels(rows, width, panel) : 0);
}

/* A thread's panels of the wide head's products: of its gradient of inputs so many columns that all
 * threads have tasks, unless it is deep. */
static size_t vast_panels(size_t rows, size_t vocab, size_t width, size_t threads, size_t panel)
{
    const size_t tiles = (rows + CPU_TILE_ROWS - 1) / CPU_TILE_ROWS,
                 few = tiles * width / (CPU_TASKS * threads),
                 columns = least(CPU_NEAR_COLUMNS, (few / 32 + 1) * 32),
                 inputs =
                     vocab * panel > CPU_DEEP_K_BYTES ? CPU_DEEP_BYTES : columns * vocab * panel;
    return most(inputs, far_panels(rows, width, panel));
}

/* Logits and their gradients (with tp they are the model's: vocab.h) and copies of the head's
 * operands, by oneDNN, or powers of logits as the wide head has them: whichever is more; both where
 * pairs of its rows are not whole. Panels of experts and of the wide head are in the same place. */
static size_t head_of_cpu(const struct config *config, bool widened, size_t rows, size_t vocab,
                          size_t width, size_t threads, size_t experts)
{
    const bool narrow = config->train.precision != CONFIG_FP32, alone = config->parallel.tp == 1;
    const size_t act = narrow ? 2 : 4, panel = panel_of(config, widened),
                 chunk = least(rows, CPU_LOSS_ROWS), wide_rows = least(rows, CPU_WIDE_BYTES / act),
                 logits = chunk * vocab * (sizeof(float) + (narrow ? act : 0)),
                 copies = 2 * vocab * width * act * chunk / CPU_LOSS_ROWS,
                 row = vocab * act + width * (sizeof(float) + act) +
                       2 * sizeof(float) * vocab / CPU_PIECE_COLUMNS,
                 by_onednn = (alone ? logits : 0) + copies + threads * experts,
                 wide =
                     wide_rows * row +
                     threads * most(vast_panels(wide_rows, vocab, width, threads, panel), experts);
    const bool vast = alone && vocab >= CPU_VAST_RATIO * width;
    if (vast && narrow && !widened &&
        vocab % 2 != 0) { /* oneDNN's is the gradient of inputs, of more rows at a time */
        return wide + copies * CPU_WIDE_BYTES / act / CPU_LOSS_ROWS;
    }
    return vast && wide > by_onednn ? wide : by_onednn;
}

/* What a router's gradients are sorted by, and what of them is rounded. */
static size_t router_of_cpu(const struct config *config, const struct architecture *arch,
                            bool widened, size_t rows)
{
    const size_t tokens = rows / (size_t)config->parallel.tp, slots = tokens * (size_t)arch->top_k,
                 rounded = config->train.precision != CONFIG_FP32 && arch->router_rounds && !widened
                               ? tokens * (size_t)arch->experts * sizeof(uint16_t)
                               : 0;
    return arch->experts > CPU_FEW_EXPERTS * arch->top_k ? slots * 2 * sizeof(int32_t) + rounded
                                                         : 0;
}

/* The head's and the router's, and what comes to be added up of an embedding that two stages share.
 */
static size_t scratch_of_cpu(const struct config *config, const struct hardware *hardware,
                             const struct architecture *arch, const struct stage_memory *memory)
{
    const size_t rows = (size_t)(config->train.micro_batch * config->train.sequence_length /
                                 config->parallel.cp),
                 vocab = (size_t)(arch->vocab / config->parallel.tp),
                 sum = config->run.deterministic == CONFIG_DETERMINISTIC_LAYOUT ? sizeof(int64_t)
                                                                                : sizeof(float);
    const bool widened = widens(hardware);
    return head_of_cpu(config, widened, rows, vocab, (size_t)arch->width, (size_t)hardware->threads,
                       layers_of_cpu(config, arch, widened, rows)) +
           router_of_cpu(config, arch, widened, rows) + (size_t)memory->elements[PARAM_EMBED] * sum;
}

size_t memory_outside(const struct config *config, const struct hardware *hardware,
                      const struct architecture *arch, const struct stage_memory *memory,
                      int64_t dp)
{
    const size_t batch = (size_t)config->train.global_batch / (size_t)dp *
                         (size_t)config->train.sequence_length * 4 * sizeof(int32_t);
    const int64_t all = dp * config->parallel.tp * config->parallel.cp * config->parallel.pp;
    if (!hardware->cpu) {
        return outside_of_gpu(config, arch);
    }
    const size_t ranks = all > 1 ? CPU_RANKS_MIB : 0,
                 tensors = (size_t)(memory->tensors * all) * SAVED_TENSOR_BYTES;
    return (CPU_PROGRAM_MIB + ranks + CPU_THREAD_MIB * (size_t)hardware->threads) * MIB + batch +
           scratch_of_cpu(config, hardware, arch, memory) +
           attention_of_cpu(config, arch, (size_t)hardware->threads) +
           (memory->stages ? save_block_bytes(memory->staging) + tensors : 0);
}

enum status memory_untouched(size_t *bytes, const struct config *config, const struct stage *stage,
                             const struct stage_memory *memory, struct device *device, int64_t dp,
                             int64_t ep)
{
    const int64_t copies = dp * config->parallel.cp, ranks = copies * config->parallel.tp;
    const int64_t replicas[PARAM_GROUPS] = {ranks, ranks / ep / config->parallel.etp, copies};
    struct config even = *config;
    struct stage_memory fair;
    *bytes = memory->spare + (memory->stages ? 0 : memory->staging);
    for (int g = 0; g < PARAM_GROUPS; g++) {
        *bytes += replicas[g] == 1 ? (size_t)memory->elements[g] * sizeof(float) : 0;
    }
    even.router.buffer_factor = 1;
    TRY(memory_of_stage(&fair, &even, stage, device, ranks, ep, false));
    for (int k = 0; k < MODEL_MEMORIES; k++) {
        *bytes += memory->kind[k] - fair.kind[k];
    }
    return STATUS_OK;
}
