"""Published data sets: a module each, with NAME, SPLITS, EVERY, ``parts``, ``missing`` and ``rows``."""

from typing import Final

from models.datasets import coco, h36m, lsp, mpi_inf_3dhp, mpii, threedpw

DATASETS: Final = (mpi_inf_3dhp, h36m, threedpw, lsp, mpii, coco)
