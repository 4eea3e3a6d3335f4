"""Every CUDA kernel compiled for real: by nvcc into a table of registers, and by NVRTC.

    python tests/cuda_sim/resources.py      writes cuda_resources.json, with nvcc

Of each kernel and architecture: registers, bytes spilled, bytes of static shared memory. The table
is kept with a digest of the sources, so that a change to a kernel is a change to the table.
"""

import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tinygrad_ml.kernels import attention, cuda

FILE = Path(__file__).parent / "cuda_resources.json"
KERNELS = Path(__file__).parents[2] / "kernels"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
HALVES = ("__half", "__nv_bfloat16")
ALL = {"float": 4, "double": 2, "__half": 8, "__nv_bfloat16": 8}  # numbers in 16 bytes
NARROWED = [("double", "double"), *(("float", t) for t in ALL if t != "double")]
TENSOR = {name: cuda.TYPES[name] for name in ("float32", "float16", "bfloat16")}


def expressions():
    """{stem: every instance that a binding may ask for}"""
    wide = [f"{t},{v}" for t, most in ALL.items() for v in (1, most)]
    heads = list(itertools.product(TENSOR, attention.WIDTHS))

    def each(names, kinds):
        return [f"{name}<{kind}>" for name in names.split() for kind in kinds]

    plain = ("float", "double")
    return {
        "adamw": each("adamw_step", [f"{t},{t}" for t in plain] + [f"float,{t}" for t in HALVES]),
        "add": each("add", [f"{h},{v}" for h in HALVES for v in (1, ALL[h])]),
        "attention": [
            *each("attention_delta", TENSOR.values()),
            *(attention.spelled(name, *head) for name in attention.HALVES for head in heads),
        ],
        "attention_of_one": each(
            "attention_of_chunk attention_of_chunks",
            [f"{TENSOR[dtype]},{width}" for dtype, width in heads],
        ),
        "best_matching_units": each(
            "best_matching_units", ("float,1", "float,4", "double,1", "double,2")
        ),
        "dropout": each("dropout", wide),
        "embedding": [
            *each("embedding_forward embedding_pieces", wide),
            *each("embedding_runs", ALL),
        ],
        "few_rows": [
            f"few_rows<{t},{v},{few}>"
            for t, most in ALL.items()
            if t != "double"
            for v in (1, most)
            for few in (1, 4, 8)
        ],
        "into_cache": each("into_cache", ALL),
        "linear_cross_entropy": [
            *each("cross_entropy_forward", [f"{t},{v}" for t in plain for v in (1, ALL[t])]),
            *each(
                "cross_entropy_backward", [f"{t},{s},{v}" for t, s in NARROWED for v in (1, ALL[t])]
            ),
        ],
        "product": each("split", (1, 4)),
        "quantized_matmul": each(
            "quantized_matmul",
            [f"{format},{few}" for format in ("Q4_0", "Q4_1", "Q8_0") for few in range(1, 9)],
        ),
        "rms_norm": [
            *each("rms_norm_forward rms_norm_backward", wide),
            *each("sum_rows", ALL),
        ],
        "rope": each("rope_turn", wide),
        "scaled": each("scaled", ALL),
        "squares": each("squares", ALL),
        "swiglu": each("swiglu_forward swiglu_backward", wide),
        "unit_sums": each("unit_sums", plain),
    }


def digest():
    """Of the sources; another compiler may find other registers, not another digest."""
    sources = sorted([*KERNELS.glob("*.cu"), *KERNELS.glob("*.cuh")])
    return hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:16]


def by_nvcc(stem, names, architecture):
    """{kernel: [registers, bytes spilled, bytes of shared memory]}"""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, f"{stem}.cu")
        pointers = ", ".join(f"(void *)&{n}" for n in names)
        code = (KERNELS / f"{stem}.cu").read_text()
        source.write_text(f"{code}\nvoid *instances[] = {{{pointers}}};\n")
        command = ["nvcc", "-std=c++17", f"-arch={architecture}", f"-I{KERNELS}",
                   "--resource-usage", "-c", str(source),
                   "-o", str(Path(folder, "out.o"))]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvcc refuses {stem}.cu for {architecture}:\n{done.stderr[:3000]}")
    return dict(sorted(_read(done.stderr).items()))


def _read(log):
    """What ptxas says of each entry, by its name in C++."""
    found = {}
    for part in log.split("Compiling entry function ")[1:]:
        name = part.split("'")[1]
        numbers = [
            re.search(r"Used (\d+) registers", part),
            re.search(r"(\d+) bytes spill stores", part),
            re.search(r"(\d+) bytes smem", part),
        ]
        found[name] = [int(n[1]) if n else 0 for n in numbers]
    names = subprocess.run(["c++filt", *found], capture_output=True, text=True).stdout.split("\n")
    short = [re.sub(r"^void |\(.*\)$", "", re.sub(r"\((int)\)", "", n)) for n in names]
    return dict(zip(short, found.values(), strict=False))


def by_nvrtc(stem, names, architecture, options, include):
    """The size of the cubin; RuntimeError with the compiler's log."""
    from cupy_backends.cuda.libs import nvrtc

    program = nvrtc.createProgram((KERNELS / f"{stem}.cu").read_text(), f"{stem}.cu", (), ())
    for name in names:
        nvrtc.addNameExpression(program, name)
    try:
        nvrtc.compileProgram(program, (f"-arch={architecture}", *options, f"-I{include}"))
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"NVRTC refuses {stem}.cu: {nvrtc.getProgramLog(program)}") from error
    return len(nvrtc.getCUBIN(program))


def table():
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    rows = {
        a: {
            k: v
            for stem, names in expressions().items()
            for k, v in by_nvcc(stem, names, a).items()
        }
        for a in ARCHITECTURES
    }
    return {"nvcc": re.search(r"V([\d.]+)", version)[1], "sources": digest(), "kernels": rows}


def written(found):
    """One kernel a line, so that a change can be read."""
    text = json.dumps(found, indent=1)
    return re.sub(r"\[\s+(\d+),\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2, \3]", text) + "\n"


if __name__ == "__main__":
    if shutil.which("nvcc") is None:
        sys.exit("nvcc is not here; it comes with NVIDIA's CUDA toolkit")
    FILE.write_text(written(table()))
