"""Runs a task with lightly and PyTorch in a process of its own, once per line on stdin.

    python benchmarks/lightly_worker.py loss N        NT-Xent and its gradient for N images
    python benchmarks/lightly_worker.py views 32      views of 32-pixel uint8 images in memory
    python benchmarks/lightly_worker.py views 224 F   views of the JPEG files in the npz file F

`torch_lightly.py` starts it with the Python interpreter that SIMCLR_LIGHTLY names. It prints a line
after each run.
"""

import io
import os
import sys

import numpy as np
import torch

DIM, TEMPERATURE = 128, 0.1
IMAGES = {32: 512, 224: 64}  # two views of each, so as many views as the others in views.py


def loss(pairs):
    """Returns a function that computes the loss and its gradient once."""
    from lightly.loss import NTXentLoss

    torch.manual_seed(0)
    z_a, z_b = (torch.randn(int(pairs), DIM, requires_grad=True) for _ in range(2))
    nt_xent = NTXentLoss(TEMPERATURE)

    def once():
        z_a.grad = z_b.grad = None
        nt_xent(z_a, z_b).backward()

    return once


def views(side, path=None):
    """Returns a function that makes the views of all images once, by a DataLoader on all cores."""
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
