"""A process that has lightly and PyTorch: does its piece of work once for each line it is sent.

    python benchmarks/lightly_worker.py loss N        NT-Xent and its gradient for N pairs
    python benchmarks/lightly_worker.py views 32      views of 32-pixel uint8 in memory
    python benchmarks/lightly_worker.py views 224 F   two views of each JPEG file of the npz F

`torch_lightly.py` starts it, in the Python that SIMCLR_LIGHTLY names. Answers each line with one.
"""

import io
import os
import sys

import numpy as np
import torch

DIM, TEMPERATURE = 128, 0.1
IMAGES = {32: 512, 224: 64}  # as many as the others in views.py take at a time, two views of each


def loss(pairs):
    """A function without arguments: one value and gradient."""
    from lightly.loss import NTXentLoss

    torch.manual_seed(0)
    z_a, z_b = (torch.randn(int(pairs), DIM, requires_grad=True) for _ in range(2))
    nt_xent = NTXentLoss(TEMPERATURE)

    def once():
        z_a.grad = z_b.grad = None
        nt_xent(z_a, z_b).backward()

    return once


def views(side, path=None):
    """A function without arguments: the views of one pass of a DataLoader on all cores."""
    from lightly.transforms import SimCLRTransform
    from PIL import Image

    side = int(side)
    small = side <= 64
    transform = SimCLRTransform(
        input_size=side, cj_strength=0.5 if small else 1.0, gaussian_blur=0.0 if small else 0.5
    )
    if path:
        images = [np.frombuffer(file, np.uint8) for file in np.load(path)["files"]]
    else:
        images = np.random.default_rng(0).integers(0, 256, [IMAGES[side], side, side, 3], np.uint8)

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            image = images[index]
            pixels = (
                Image.open(io.BytesIO(image)).convert("RGB") if path else Image.fromarray(image)
            )
            return transform(pixels)

    loader = torch.utils.data.DataLoader(
        Images(), batch_size=64, num_workers=os.cpu_count(), persistent_workers=True
    )

    def once():
        return [[view.numpy() for view in batch] for batch in loader]

    return once


if __name__ == "__main__":
    once = {"loss": loss, "views": views}[sys.argv[1]](*sys.argv[2:])
    print("ready", flush=True)
    for _ in sys.stdin:
        once()
        print("done", flush=True)
