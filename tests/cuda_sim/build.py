"""From a .cu file to a shared library: three constructs rewritten, the rest g++ as it is.

    extern __shared__ float tile[];           the block's dynamic shared memory
    asm volatile("mma..." : ... : ...)        a call of the simulator's interpreter of PTX
    rms_norm_forward<float>                   an exported entry for each kernel that is asked for

Lines keep their numbers. Libraries are kept in a cache folder under a hash of all that made them.
"""

import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
FLAGS = ["-std=c++20", "-O1", "-g", "-fPIC", "-w", "-ffp-contract=off", "-fno-tree-vectorize",
         "-fno-threadsafe-statics",
         "-fno-gnu-unique", "-fno-tree-loop-distribute-patterns"]  # fmt: skip
CHECKED = ["-fsanitize=thread", "-include", "cuda_sim.h", "-I", str(HERE / "include")]


def available():
    """Why kernels cannot be simulated here; None if they can."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return "the CUDA simulator switches stacks in x86-64 assembly"
    return None if shutil.which("g++") else "the CUDA simulator needs g++"


def library(code, options, kernels):
    """The path of the library of these kernels, each exported as sim_run_<its place>."""
    includes = [Path(o[2:]) for o in options if o.startswith("-I")]
    headers = [p for folder in includes for p in sorted(folder.glob("*.cuh"))]
    folder = _translated_headers(headers)
    exports = "".join(f"SIM_EXPORT({i}, {name})\n" for i, name in enumerate(kernels))
    source = f"{translated(code)}\n{exports}SIM_EXPORT_SHARED\n"
    defines = [o for o in options if o.startswith("-D")]
    flags = [*FLAGS, *CHECKED, "-I", str(folder), *defines]
    return _built(source, flags, _bytes(sorted((HERE / "include").glob("*.h"))), str(runtime()))


@functools.cache
def runtime():
    """The path of the simulator itself."""
    return _built((HERE / "runtime.cc").read_text(), ["-std=c++20", "-O2", "-g", "-fPIC"], b"", "")


def translated(code):
    """The same text for g++: dynamic shared memory and inline PTX become calls."""
    code = re.sub(
        r"extern\s+__shared__\s+(?:__align__\(\d+\)\s*)?([\w\s]+?)\s+(\w+)\[\];",
        r"\1 *\2 = (\1 *)sim::dynamic_shared();",
        code,
    )
    parts, end = [], 0
    for found in re.finditer(r"\basm(?:\s+volatile)?\s*\(", code):
        close = _closing(code, found.end() - 1)
        statement = code[found.end() : close]
        lines = "\n" * code.count("\n", found.start(), close)
        parts += [code[end : found.start()], _ptx_call(statement), lines]
        end = close + 1
    return "".join([*parts, code[end:]])


def _ptx_call(statement):
    """ "text" : "+f"(d) : "r"(a)  ->  sim::asm_statement(site, "text", sim::operand(d), ...)"""
    text, *sections = _split(statement, ":")
    operands = [o for section in sections[:2] for o in _split(section, ",") if o.strip()]
    values = [re.sub(r'^\s*"[^"]*"\s*', "", o) for o in operands]
    arguments = "".join(f", sim::operand{v.strip()}" for v in values)
    site = "sim::Site{__builtin_FILE(), __builtin_LINE()}"
    return f"sim::asm_statement({site}, {' '.join(text.split())}{arguments})"


def _closing(code, opening):
    """The place of the parenthesis that closes this one; strings are passed over."""
    depth, quoted = 0, False
    for i in range(opening, len(code)):
        quoted ^= code[i] == '"'
        depth += 0 if quoted else (code[i] == "(") - (code[i] == ")")
        if depth == 0:
            return i
    raise ValueError("asm: its parenthesis is never closed")


def _split(text, separator):
    """At separators outside strings and parentheses."""
    parts, depth, quoted = [""], 0, False
    for c in text:
        quoted ^= c == '"'
        depth += 0 if quoted else (c in "([") - (c in ")]")
        if c == separator and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def _translated_headers(headers):
    """A folder with the kernels' headers, translated as the kernels are."""
    texts = {p.name: translated(p.read_text()) for p in headers}
    key = hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:20]
    folder = _cache() / f"headers-{key}"
    for name, text in texts.items():
        _write(folder / name, text)
    return folder


def _built(source, flags, others, linked):
    key = hashlib.sha256(repr((source, flags, others, linked, _gxx())).encode()).hexdigest()[:20]
    path = _cache() / f"{key}.so"
    if path.exists():
        return path
    text = _write(_cache() / key / "kernel.cu", source)
    with tempfile.TemporaryDirectory(dir=_cache()) as scratch:
        made = Path(scratch, "made.o")
        _run(["g++", *flags, "-x", "c++", "-c", "-o", made, text])
        # without -fsanitize at the link: the runtime is ours
        link = [linked, f"-Wl,-rpath,{Path(linked).parent}"] if linked else []
        library = Path(scratch, "made.so")
        _run(["g++", "-shared", "-Wl,-Bsymbolic", "-o", library, made, *link])
        library.replace(path)
    return path


def _run(command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"g++ refuses this for the simulator:\n{done.stderr[:4000]}")


@functools.cache
def _gxx():
    return subprocess.run(["g++", "--version"], capture_output=True, text=True).stdout


def _bytes(paths):
    return b"".join(p.read_bytes() for p in paths)


def _write(path, text):
    """Whole or not at all: another process may be at the same file."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        Path(file.name).replace(path)
    return path


def _cache():
    folder = os.environ.get("TINYGRAD_ML_SIM_CACHE")
    path = Path(folder) if folder else Path(tempfile.gettempdir(), f"cuda-sim-{os.getuid()}")
    path.mkdir(parents=True, exist_ok=True)
    return path
