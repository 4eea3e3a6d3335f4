"""What cupy offers, as the stand-in may use it: every name with the parameters that it takes.

    python tests/cuda_sim/signatures.py        writes cupy_signatures.json from the cupy installed

The file is kept, since cupy is not installed where most tests run; a test compares it with the
real package where it is (cupy is imported without a driver).
"""

import inspect
import json
import re
from pathlib import Path

FILE = Path(__file__).parent / "cupy_signatures.json"


def signatures():
    """{name: its parameters} of what numpy and the real cupy have in common, and its arrays'."""
    import cupy
    import cupyx
    import numpy as np
    from cupy_backends.cuda.libs import cublas

    found = {}
    for space, ours, theirs in (("", cupy, np), ("linalg.", cupy.linalg, np.linalg)):
        for name in dir(ours):
            f = getattr(ours, name)
            shared = not name.startswith("_") and hasattr(theirs, name)
            if shared and callable(f) and not inspect.isclass(f):
                found[space + name] = parameters(f)
    for name in dir(cupy.ndarray):
        if callable(getattr(cupy.ndarray, name)) and not name.startswith("__"):
            found["ndarray." + name] = parameters(getattr(cupy.ndarray, name))
    found["cupyx.rsqrt"] = parameters(cupyx.rsqrt)
    for name in ("gemmStridedBatchedEx", "gemmEx", "getMathMode", "setMathMode"):
        found["cublas." + name] = parameters(getattr(cublas, name))
    for name in ("RawModule", "RawKernel"):
        found[name] = parameters(getattr(cupy, name))
    for kind, names in CUDA.items():
        for name in names.split():
            found[f"cuda.{kind}.{name}"] = parameters(getattr(getattr(cupy.cuda, kind), name))
    for name in ("using_allocator", "get_current_stream", "get_elapsed_time"):
        found["cuda." + name] = parameters(getattr(cupy.cuda, name))
    return found


CUDA = {  # classes of cupy.cuda, and what the library calls of them
    "Stream": "begin_capture end_capture synchronize",
    "Graph": "launch",
    "Event": "record synchronize",
    "MemoryPool": "malloc used_bytes total_bytes",
}


def parameters(f):
    """'a, axis=None, out=None' from Python's signature, or from the first line of the docstring."""
    try:
        kinds = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        line = (f.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
        return _from_text(line)
    texts = [str(p).partition(":")[0].partition("=")[0] for p in kinds]
    keyword = next((i for i, p in enumerate(kinds) if p.kind is p.KEYWORD_ONLY), None)
    if keyword is not None and not any(p.kind is p.VAR_POSITIONAL for p in kinds):
        texts.insert(keyword, "*")
    return ", ".join(texts)


def _from_text(line):
    inside = re.search(r"\((.*)\)", line.partition("->")[0])
    if inside is None:
        return "?"
    plain = re.sub(r"\[.*?\]|\(.*?\)|\\", "", inside[1])
    names = [p.partition("=")[0].split()[-1] for p in plain.split(",") if p.strip() not in "/"]
    return ", ".join(n for n in names if n != "/")


if __name__ == "__main__":
    FILE.write_text(json.dumps(signatures(), indent=0, sort_keys=True) + "\n")
