"""Published data sets: a module each, with NAME, SPLITS, EVERY, parts, missing and rows."""

from typing import Final

from models.datasets import h36m, mpi_inf_3dhp, threedpw

DATASETS: Final = (mpi_inf_3dhp, h36m, threedpw)
