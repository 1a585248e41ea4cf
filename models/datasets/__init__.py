"""Published data sets: a module each, with NAME, SPLITS, STEP, ``parts`` and ``rows``.

STEP is the default step between the frames or people of each split. Sets of several files have ``missing``.
"""

from typing import Final

from models.datasets import coco, h36m, lsp, mpi_inf_3dhp, mpii, threedpw

DATASETS: Final = (mpi_inf_3dhp, h36m, threedpw, lsp, mpii, coco)
