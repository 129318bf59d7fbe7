#!/usr/bin/env python3
"""short-turns.py MICROSECONDS COMMAND...: runs it, and all that it starts, in turns on the cores that are so short.

Where the kernel can do that (Linux 6.12 and later); elsewhere as usual. Ranks that share cores with busy programs wait
a turn of theirs for each message: eight ranks on two cores beside two busy loops take 15 s instead of 86.
"""
import ctypes
import os
import platform
import struct
import sys

NUMBERS = {"x86_64": 314, "aarch64": 274}  # of sched_setattr


def shorten(nanoseconds):
    number = NUMBERS.get(platform.machine())
    if sys.platform == "linux" and number is not None:
        size, other, no_flags, priority, unused = 48, 0, 0, 0, 0  # struct sched_attr, linux/sched/types.h
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        attr = struct.pack("=IIQiIQQQ", size, other, no_flags, nice, priority, nanoseconds, unused, unused)
        ctypes.CDLL(None).syscall(number, 0, attr, 0)  # without it the command is only slower


def main():
    if len(sys.argv) < 3 or not sys.argv[1].isdigit():
        sys.exit(__doc__)
    shorten(int(sys.argv[1]) * 1000)
    os.execvp(sys.argv[2], sys.argv[2:])


main()
