#include "trainer/model/layout.h"

void layout_init(struct layout *layout, struct arena *arena, bool training, int recompute)
{
    const bool block = !training || recompute == CONFIG_RECOMPUTE_BLOCK;
    *layout =
        (struct layout){.arena = arena,
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
