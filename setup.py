"""Build of the one compiled part: the C kernel of ``lowres_vision.ops.resize``.

It is a plain shared library that Python never imports, so a wheel fits every Python 3 on its
platform. Where no compiler is at hand the build goes on without it and the wheel is pure.
"""

import re
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

WINDOWS = sys.platform == "win32"
KERNEL = "lowres_vision/ops/_resize"


class BuildLibrary(build_ext):
    """Builds a library of a plain name, without the entry point of a Python module."""

    def get_ext_filename(self, fullname):
        """Return the path without the tag of one Python."""
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def get_export_symbols(self, ext):
        """Return what the source exports; there is no ``PyInit``."""
        return ext.export_symbols


class PlatformWheel(bdist_wheel):
    """Tags the wheel for any Python 3 on this platform, or on any where nothing was built.

    On Linux the tag names the oldest glibc that has all the library asks for, as measured; what
    else a manylinux wheel must keep to, `auditwheel show` checks.
    """

    def get_tag(self):
        """Return (Python, ABI, platform)."""
        library = next(Path(self.bdist_dir).rglob("libresize.so"), None)
        if library is None:
            return "py3", "none", "any"
        platform = super().get_tag()[2]
        glibc = [int(minor) for minor in re.findall(rb"\0GLIBC_2\.(\d+)", library.read_bytes())]
        if glibc and platform.startswith("linux_"):
            oldest = max(17, *glibc)  # 2.17 is the oldest that pip still knows on every processor
            platform = f"manylinux_2_{oldest}_{platform.removeprefix('linux_')}"
        return "py3", "none", platform


setup(
    ext_modules=[
        Extension(
            "lowres_vision.ops._resize.libresize",
            sources=[f"{KERNEL}/native.c"],
            depends=[
                f"{KERNEL}/native_{part}.h"
                for part in ("axis", "bytes", "rows", "rows_x86", "threads")
            ],
            extra_compile_args=["/O2"] if WINDOWS else ["-O3", "-g0", "-fvisibility=hidden"],
            libraries=[] if WINDOWS else ["m", "pthread"],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
