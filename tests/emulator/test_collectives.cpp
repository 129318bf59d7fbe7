#include "check_collectives.h"

#include "check.h"

static int expected(int check, int t)
{
    int lane = t % 32, warp = t - lane;
    unsigned bits = 0;
    switch (check) {
    case SHUFFLE:
        return warp + 5;
    case SHUFFLE_WIDTH:
        return t / 8 * 8 + 1;
    case SHUFFLE_XOR:
        return t ^ 17;
    case SHUFFLE_XOR_WIDTH:
        return (t ^ 9) % 32 / 8 <= lane / 8 ? t ^ 9 : t; /* a lower segment is allowed */
    case SHUFFLE_DOWN:
        return lane + 3 < 32 ? t + 3 : t;
    case SHUFFLE_UP:
        return t % 16 >= 3 ? t - 3 : t;
    case BALLOT:
        return 0x49249249;
    case ANY_ALL:
        return 3;
    case MATCH:
        for (int i = 0; i < 32; i++)
            bits |= i % 5 == lane % 5 ? 1u << i : 0;
        return (int)bits;
    case REDUCE_ADD:
        return 32 * warp + 31 * 16;
    case REDUCE_MAX:
        return warp + 31;
    case HALF:
        return t ^ (lane < 16 ? 8 : 4);
    case COUNT:
        return 24;
    case AND_OR:
        return 3;
    case ELECTED:
        return 1;
    case NAMED:
        return t >= 32 && t < 64 ? 42 : 0;
    case BYTES:
        return 0x77225500;
    default:
        return __builtin_popcount((unsigned)t) + 100 * __builtin_ffs(t) +
               10000 * (t ? __builtin_clz((unsigned)t) : 32);
    }
}

static bool test()
{
    device_vector<int> result(std::vector<int>(CHECKS * 96, -1)), counter(std::vector<int>(4, 0));
    launch_collectives(result.data, counter.data);
    std::vector<int> got = result.get(), count = counter.get();
    for (int i = 0; i < CHECKS * 96; i++)
        if (got[(size_t)i] != expected(i / 96, i % 96)) {
            printf("collectives: WRONG check %d, thread %d: %d, want %d\n", i / 96, i % 96,
                   got[(size_t)i], expected(i / 96, i % 96));
            return false;
        }
    return count[0] == 96 * 95 / 2 && count[1] == 95 && count[2] > 0 && count[3] == 7;
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, test);
}
