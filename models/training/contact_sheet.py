"""Contact sheet of meshes over crops, to see what a net has learned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from models.body import Body
from models.rendering.overlay import composite
from models.rendering.software import draw
from models.training.loop import Bodies
from models.training.samples import Samples
from pipeline.cameras import Rig

_COLOURS = ((0.9, 0.45, 0.35, 0.85), (0.35, 0.6, 0.9, 0.85))


def contact_sheet(samples: Samples, rows: Sequence[Bodies], mesh: Body) -> NDArray[np.uint8]:
    """Draw crops side by side and, below, each of ``rows`` over them: (H, W, 3) RGB.

    Bodies that are not finite and views without a crop are left out.
    """
    images = samples.images.cpu().permute(0, 1, 3, 4, 2).flatten(0, 1).numpy()
    K, seen = samples.K.cpu().double().flatten(0, 1).numpy(), samples.seen.cpu().flatten().numpy()
    sheet = [np.concatenate(list(images), 1)]
    size = images.shape[1]
    for bodies, colour in zip(rows, _COLOURS, strict=False):
        flat = bodies.to("cpu").map(lambda x: x.flatten(0, 1)[:, None])
        vertices = mesh.to("cpu").vertices(
            flat.orient[:, 0], flat.body_pose[:, 0], flat.betas[:, 0], flat.transl[:, 0]
        )
        finite = torch.stack([x.isfinite().flatten(1).all(1) for x in (flat.orient, flat.transl)]).all(0)
        drawn = []
        for i, image in enumerate(images):
            if seen[i] and finite[i]:
                rig = Rig(
                    ("crop",), K[i : i + 1], np.zeros((1, 8)), np.eye(3)[None], np.zeros((1, 3)),
                    np.array([[size, size]]),
                )  # fmt: skip
                picture = draw(
                    vertices[i : i + 1].numpy(), mesh.faces, rig, 0, np.array([colour], np.float32)
                )
                image = composite(image, picture)
            drawn.append(image)
        sheet.append(np.concatenate(drawn, 1))
    return np.concatenate(sheet, 0)
