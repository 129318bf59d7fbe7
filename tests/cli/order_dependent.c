/* Linked into a second switchyard (-Wl,--wrap=gradients_add), which test_determinism.sh must catch:
 * gradients of dense weights add up in f32, in whatever order units come. CPU only. */
#include "trainer/model/gradients.h"

void __wrap_gradients_add(const struct gradients *gradients, int64_t *sum, int64_t count);

void __wrap_gradients_add(const struct gradients *gradients, int64_t *sum, int64_t count)
{
    for (int64_t i = 0; gradients->fixed && i < count; i++) {
        sum[i] = (int64_t)((float)sum[i] + gradients->unit[i] * gradients->point->scale);
        gradients->unit[i] = 0;
    }
}
