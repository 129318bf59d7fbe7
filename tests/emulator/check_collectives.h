/* check_collectives: rows of test_collectives.cu's results, and its launcher. */
#ifndef EMULATOR_CHECK_COLLECTIVES_H
#define EMULATOR_CHECK_COLLECTIVES_H

enum check {
    SHUFFLE,
    SHUFFLE_WIDTH,
    SHUFFLE_XOR,
    SHUFFLE_XOR_WIDTH,
    SHUFFLE_DOWN,
    SHUFFLE_UP,
    BALLOT,
    ANY_ALL,
    MATCH,
    REDUCE_ADD,
    REDUCE_MAX,
    HALF,
    COUNT,
    AND_OR,
    ELECTED,
    NAMED,
    BYTES,
    BITS,
    CHECKS
};

#ifdef __cplusplus
extern "C"
#endif
    void
    launch_collectives(int *result, int *counter);

#endif
