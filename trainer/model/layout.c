#include "trainer/model/layout.h"

void layout_init(struct layout *layout, struct arena *arena, bool training, int recompute)
{
    const bool block = !training || recompute == CONFIG_RECOMPUTE_BLOCK;
    *layout =
        (struct layout){.arena = arena,
                        .training = training,
                        .lent = {[MEMORY_ROUTER] = !training,
                                 [MEMORY_INPUT] = !training,
                                 [MEMORY_NORM] = block || recompute == CONFIG_RECOMPUTE_NORMS,
                                 [MEMORY_INNER] = block || recompute == CONFIG_RECOMPUTE_EXPERTS,
                                 [MEMORY_REST] = block}};
}

void *layout_buffer(const struct layout *layout, enum memory_class kind, void *lent, size_t bytes)
{
    const bool own = layout->lent[kind] == layout->lending;
    if (own) {
        return arena_alloc(layout->arena, bytes);
    }
    return layout->lending ? NULL : lent;
}

int64_t fp8_pitch(int64_t rows)
{
    return (rows + 3) / 4 * 4;
}

size_t fp8_scale_bytes(int64_t rows, int64_t cols)
{
    return (size_t)(fp8_tiles(cols) * fp8_pitch(rows)) * sizeof(float);
}

struct fp8_buffer layout_codes(const struct layout *layout, enum memory_class kind,
                               struct fp8_buffer lent, int64_t rows, int64_t cols)
{
    return (struct fp8_buffer){
        .code = layout_buffer(layout, kind, lent.code, (size_t)(rows * cols)),
        .scale = layout_buffer(layout, kind, lent.scale, fp8_scale_bytes(rows, cols))};
}
