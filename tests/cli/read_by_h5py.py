"""read_by_h5py.py CKPT_DIR FP8_CKPT_DIR MANUAL EXPORTED COLUMNS_CKPT_DIR: what h5py reads of checkpoints is what their manifests say lies in
the shards, byte for byte; the Python of the manual (docs/checkpoints.md) runs and is right;
EXPORTED, the first one's export, stands alone."""
import json
import os
import re
import sys

import h5py
import numpy as np

KINDS = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "float8_e4m3fn": np.uint8}


def places(first, count, runs):
    """The elements that a piece holds; of columns: [run, stride]."""
    at = np.arange(count)
    return first + (at // runs[0] * runs[1] + at % runs[0] if runs else at)


def as_stored(folder, manifest, tensor):
    """The elements of a tensor from the places that the manifest names, without HDF5."""
    kind = np.dtype(KINDS[tensor["dtype"]])
    flat = np.empty(int(np.prod(tensor["shape"])), kind)
    for file, first, count, offset, *runs in tensor["pieces"]:
        with open(os.path.join(folder, manifest["files"][file]["name"]), "rb") as shard:
            shard.seek(offset)
            flat[places(first, count, runs)] = np.frombuffer(shard.read(count * kind.itemsize), kind)
    return flat.reshape(tensor["shape"])


def bits(kind, values):
    """Of what h5py read: bfloat16 comes as float32."""
    return (values.view(np.uint32) >> 16).astype(np.uint16) if kind == "bfloat16" else values


def same(folder):
    """Counts tensors of each dtype, and those with divided columns, that the view and the shards alone show right."""
    manifest, seen = json.load(open(os.path.join(folder, "manifest.json"))), {}
    with h5py.File(os.path.join(folder, "model.h5"), "r") as view:
        for tensor in manifest["tensors"]:
            name, kind = tensor["name"], tensor["dtype"]
            stored, item = as_stored(folder, manifest, tensor), view[name]
            assert item.is_virtual and item.attrs["dtype"] in (kind, kind.encode()), name
            assert np.array_equal(bits(kind, item[...]).view(np.uint8), stored.view(np.uint8)), name
            assert np.array_equal(bits(kind, item[:1]).view(np.uint8), stored[:1].view(np.uint8)), name
            files = []
            for file, first, count, _, *runs in tensor["pieces"]:
                with h5py.File(os.path.join(folder, manifest["files"][file]["name"]), "r") as shard:
                    part = shard[name if file not in files else f"{name}@{first}"]
                    files.append(file)
                    assert (part.attrs["first"], part.attrs["count"]) == (first, count), name
                    assert [part.attrs[key] for key in ("run", "stride") if key in part.attrs] == runs, name
                    assert list(part.attrs["shape"]) == tensor["shape"], name
                    assert np.array_equal(bits(kind, part[...]), stored.reshape(-1)[places(first, count, runs)]), name
            seen["columns"] = seen.get("columns", 0) + any(len(piece) > 4 for piece in tensor["pieces"])
            seen[kind] = seen.get(kind, 0) + 1
    return seen


def run_manual(manual, folder, fp8):
    """Its blocks of Python, one after another, with our paths and names."""
    blocks = re.findall(r"```python\n(.*?)```", open(manual).read(), re.S)
    assert len(blocks) == 2
    space = {}
    exec(blocks[0].replace("runs/mine/checkpoints/00000100/model.h5", folder + "/model.h5"), space)
    assert len(space["weights"]) > 20 and space["rows"].shape[0] == 16 and space["master"].dtype == np.float32
    assert np.allclose(space["master"], space["ckpt"][space["weights"][0]][...], rtol=2**-8, atol=0)
    assert np.isfinite(space["update"]).all() and space["update"].any()
    manifest = json.load(open(fp8 + "/manifest.json"))
    scaled = [t["name"] for t in manifest["tensors"] if t["dtype"] == "float8_e4m3fn"]
    first, second = blocks[1].split("def e4m3", 1)
    exec(first, space)
    stored = as_stored(folder, json.load(open(folder + "/manifest.json")),
                       next(t for t in json.load(open(folder + "/manifest.json"))["tensors"]
                            if t["name"] == space["w"].name[1:]))
    assert np.array_equal(space["bits"], stored)
    space["ckpt"] = h5py.File(fp8 + "/model.h5", "r")
    exec(("def e4m3" + second).replace("X.weight", scaled[0]), space)
    known = space["e4m3"](np.array([0x00, 0x01, 0x08, 0x38, 0xB8, 0x7E, 0xFE], np.uint8))
    assert known.tolist() == [0, 2.0**-9, 2.0**-6, 1, -1, 448, -448] and np.isnan(space["e4m3"](np.array([0x7F])))[0]
    assert space["x"].shape == space["ckpt"][scaled[0]].shape and np.isfinite(space["x"]).all() and space["x"].any()


def stands_alone(folder, exported):
    with h5py.File(os.path.join(folder, "model.h5"), "r") as view, h5py.File(exported, "r") as whole:
        for tensor in json.load(open(os.path.join(folder, "manifest.json")))["tensors"]:
            item, other = view[tensor["name"]], whole[tensor["name"]]
            assert not other.is_virtual and item.dtype == other.dtype, tensor["name"]
            assert np.array_equal(item[...], other[...]), tensor["name"]


trained, fp8, manual, exported, columns = sys.argv[1:]
counts = [same(folder) for folder in (trained, fp8, columns)]
assert counts[0]["bfloat16"] > 20 and counts[0]["float32"] > 60 and counts[1]["float8_e4m3fn"] > 5, counts
assert counts[2]["columns"] >= 4 and counts[0]["columns"] == 0, counts
run_manual(manual, trained, fp8)
stands_alone(trained, exported)
print("h5py", h5py.version.version, "HDF5", h5py.version.hdf5_version, counts)
