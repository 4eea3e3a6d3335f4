"""Builds the C kernels, where there is a compiler; without one everything runs by definition.

Each source in kernels/ is compiled for float and for double, once per instruction level, and
linked into one library per level: the running program picks the best that its CPU can execute.
"""

import hashlib
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

FLAGS = ["-O3", "-Wno-psabi", "-std=gnu11", "-fopenmp-simd", "-fvisibility=hidden",
         "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]  # fmt: skip
# TINYGRAD_ML_SANITIZE=address,undefined: every access and every operation of the C is checked
SANITIZE = os.environ.get("TINYGRAD_ML_SANITIZE", "")
CHECKED = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-g1", "-O1"] if SANITIZE else []

ONLY = os.environ.get("TINYGRAD_ML_LEVELS", "base v3 v4").split()  # what is built, base too

LEVELS = {"base": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    LEVELS["v3"] = ["-mavx2", "-mfma", "-mf16c"]
    LEVELS["v4"] = ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-mf16c",
                    "-mprefer-vector-width=512"]  # fmt: skip

SOURCES = sorted(map(str, Path("kernels").glob("*.c")))
HEADERS = sorted(map(str, Path("kernels").glob("*.h")))
UNTYPED = {"kernels/common.c", "kernels/pool.c"}  # have no real numbers in them
DIGEST = hashlib.sha256(b"".join(Path(p).read_bytes() for p in SOURCES + HEADERS)).hexdigest()


class BuildKernels(build_ext):
    """Compiles every source twice; a level that cannot be built is left out, and says so."""

    def build_extensions(self):
        with ThreadPoolExecutor() as pool:  # the compiler is a process: threads suffice
            errors = list(pool.map(self.error_of, self.extensions))
        missing = {
            extension.name.rpartition("_")[2]: error[:60]
            for extension, error in zip(self.extensions, errors, strict=True)
            if error is not None
        }
        if missing:
            print(f"tinygrad_ml: C kernels not built: {', '.join(missing)} "
                  f"({next(iter(missing.values()))}...). Nothing is missing: "
                  "a lower level or numpy does the same work.")  # fmt: skip

    def error_of(self, extension):
        """Build one level; what went wrong, or None."""
        try:
            self.link(extension, list(self.objects(extension)))
        except Exception as error:  # no compiler, an old assembler
            return str(error)
        return None

    def objects(self, extension):
        """The object files of one level."""
        for real in ("float", "double"):
            sources = [s for s in extension.sources if s not in UNTYPED or real == "float"]
            yield from self.compiler.compile(
                sources,
                output_dir=str(Path(self.build_temp, extension.name, real)),
                macros=[
                    ("real", real),
                    (f"REAL_IS_{real.upper()}", "1"),
                    ("SOURCES", f'"{DIGEST}"'),
                ],
                extra_postargs=extension.extra_compile_args,
                depends=extension.depends,
            )

    def link(self, extension, objects):
        path = Path(self.get_ext_fullpath(extension.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(
            objects, str(path), extra_postargs=extension.extra_link_args, libraries=["m"]
        )


def library(level, flags):
    return Extension(
        f"tinygrad_ml.kernels._cpu_{level}",
        SOURCES,
        depends=HEADERS,
        optional=True,
        extra_compile_args=FLAGS + flags + CHECKED,
        extra_link_args=["-pthread", *CHECKED[:1]],
    )


setup(
    packages=[*find_packages(include=["tinygrad_ml", "tinygrad_ml.*"]), "tinygrad_ml.kernels"],
    package_dir={"tinygrad_ml.kernels": "kernels"},
    package_data={
        "tinygrad_ml": ["py.typed"],
        "tinygrad_ml.kernels": ["*.c", "*.h", "*.cu", "*.cuh", "README.md"],
    },
    ext_modules=[
        library(level, flags) for level, flags in LEVELS.items() if level in ("base", *ONLY)
    ],
    cmdclass={"build_ext": BuildKernels},
)
