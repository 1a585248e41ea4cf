"""Compile PyTorch3D's rasteriser alone, for the torch that is there.

    python tests/pytorch3d_rasteriser.py SOURCE SITE

SOURCE: a checkout of PyTorch3D (BSD). SITE: a folder on the Python path, which gets a package ``pytorch3d``
with what ``models/rendering/pytorch3d.py`` uses. All of PyTorch3D takes twenty minutes to compile.
"""

import shutil
import sys
from pathlib import Path

import torch
from torch.utils.cpp_extension import load

PYTHON = ("__init__.py", "common", "structures", "transforms", "ops", "utils", "renderer")
UNITS = ("rasterize_meshes/rasterize_meshes.cu", "rasterize_meshes/rasterize_meshes_cpu.cpp",
         "rasterize_coarse/rasterize_coarse.cu")  # fmt: skip
BINDING = """
#include <torch/extension.h>
#include "rasterize_meshes/rasterize_meshes.h"
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("rasterize_meshes", &RasterizeMeshes);
  m.def("rasterize_meshes_backward", &RasterizeMeshesBackward);
}
"""
EMPTY = ("renderer/__init__.py", "renderer/mesh/__init__.py", "ops/__init__.py", "utils/__init__.py")


def main(source: Path, site: Path) -> None:
    package, csrc = site / "pytorch3d", source / "pytorch3d" / "csrc"
    package.mkdir(parents=True)
    for name in PYTHON:
        file = source / "pytorch3d" / name
        (shutil.copytree if file.is_dir() else shutil.copy)(file, package / name)
    for name in EMPTY:
        (package / name).write_text("")
    # Headers of CUDA's libraries lie beside torch where the toolkit is the compiler alone.
    headers = Path(torch.__file__).parents[1].glob("nvidia/*/include")
    build = site / "pytorch3d_build"
    build.mkdir()
    (build / "binding.cpp").write_text(BINDING)
    load(
        "_C",
        [str(build / "binding.cpp"), *(str(csrc / unit) for unit in UNITS)],
        extra_include_paths=[str(csrc), *(str(p) for p in headers)],
        extra_cflags=["-O2", "-DWITH_CUDA"],
        extra_cuda_cflags=["-O2", "-DWITH_CUDA", "-DTHRUST_IGNORE_CUB_VERSION_CHECK"],
        build_directory=str(build),
        with_cuda=True,
        is_python_module=False,
    )
    shutil.copy(next(build.glob("_C*.so")), package / "_C.so")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
