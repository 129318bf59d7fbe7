/* Batch invariance of the CUDA device's ops, on the emulator, by the check of the CPU's
 * (tests/invariance_check.h): blocks and threads run in another order in every run. */
#include "invariance_check.h"
#include "kernels/invariance.h"

int main(void)
{
    /* around the tiles of the kernels: 64 and 128 rows, 128 columns */
    static const struct device_options options = {
        .name = "cuda", .threads = 1, .deterministic = true};
    struct device *device = NULL;
    if (device_open(&device, &options) != STATUS_OK) {
        printf("%s\n", status_message());
        return 70;
    }
    const struct invariance_devices which = {.device = &device,
                                             .count = 1,
                                             .pool = INVARIANCE_POOL,
                                             .width = 144,
                                             .inner = 48,
                                             .name = "CUDA"};
    bool right = invariance_check_all(&which);
    if (invariance_check(device, DTYPE_BF16, 48, 32) != STATUS_OK) {
        printf("%s\n", status_message());
        right = false;
    }
    device_close(device);
    return right ? 0 : 1;
}
