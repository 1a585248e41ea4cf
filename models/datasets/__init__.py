"""Published data sets: a module each, with NAME, SPLITS, STEP, ``parts``, ``missing`` and ``rows``.

STEP is the default step between the frames or people of each split.
"""

from typing import Final

from models.datasets import coco, h36m, lsp, mpi_inf_3dhp, mpii, threedpw

DATASETS: Final = (mpi_inf_3dhp, h36m, threedpw, lsp, mpii, coco)
