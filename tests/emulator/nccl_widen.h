/* nccl_widen: bf16 <-> float around reductions; everything else that NCCL carries is bytes. */
#ifndef EMULATOR_NCCL_WIDEN_H
#define EMULATOR_NCCL_WIDEN_H

#include <stdint.h>
#include <string.h>
#include <vector>

inline std::vector<char> widened(const std::vector<char> &from)
{
    std::vector<char> to(2 * from.size());
    for (size_t i = 0; i < from.size() / 2; i++) {
        memset(&to[4 * i], 0, 2);
        memcpy(&to[4 * i + 2], &from[2 * i], 2);
    }
    return to;
}

inline std::vector<char> narrowed(const std::vector<char> &from)
{
    std::vector<char> to(from.size() / 2);
    for (size_t i = 0; i < to.size() / 2; i++) {
        uint32_t bits;
        memcpy(&bits, &from[4 * i], 4);
        if ((bits & 0x7fffffff) <= 0x7f800000)
            bits += 0x7fff + (bits >> 16 & 1); /* to nearest, ties to even */
        memcpy(&to[2 * i], (const char *)&bits + 2, 2);
    }
    return to;
}

#endif
