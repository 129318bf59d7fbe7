"""rpath.py LIB FILE...: a RUNPATH or RPATH in these ELF files becomes an RPATH to the folder LIB, relative to the file.

In place, as chrpath does: the new path must not be longer than the old one. Files without either are left alone.
"""

import os
import struct
import sys

DT_STRTAB, DT_RPATH, DT_RUNPATH, PT_LOAD, PT_DYNAMIC = 5, 15, 29, 1, 2


def patch(path, lib):
    with open(path, "rb") as f:
        data = bytearray(f.read())
    if data[:5] != b"\x7fELF\x02":
        return
    offset, size, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQQQ", data, offset + i * size) for i in range(count)]
    dynamic = next((s for s in segments if s[0] == PT_DYNAMIC), None)
    if dynamic is None:
        return
    entries = {}
    for at in range(dynamic[2], dynamic[2] + dynamic[5], 16):
        tag, value = struct.unpack_from("<QQ", data, at)
        if tag == 0:
            break
        entries[tag] = (at, value)
    tag = DT_RUNPATH if DT_RUNPATH in entries else DT_RPATH
    if tag not in entries:
        return
    strings = entries[DT_STRTAB][1]
    load = next(s for s in segments if s[0] == PT_LOAD and s[3] <= strings < s[3] + s[5])
    start = strings - load[3] + load[2] + entries[tag][1]
    old = data[start : data.index(0, start)]
    new = b"$ORIGIN/" + os.path.relpath(lib, os.path.dirname(path)).encode()
    if len(new) > len(old):
        sys.exit(f"{path}: no room for {new.decode()} in place of {old.decode()}")
    data[start : start + len(old)] = new.ljust(len(old), b"\0")
    struct.pack_into("<Q", data, entries[tag][0], DT_RPATH)
    with open(path, "wb") as f:
        f.write(data)


for name in sys.argv[2:]:
    patch(name, sys.argv[1])
