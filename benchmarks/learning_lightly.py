"""Trains lightly's CIFAR-10 recipe for a given time; a worker of learning.py.

The recipe is SimCLR in lightly's cifar10_benchmark.py: ResNet-18, batches of 128, SGD, cosine
decay. The network computes in bfloat16 by torch.autocast, which the recipe does not ask for, since
it trains more images in the same time; the loss is computed in float32. `learning.py` starts it
with the Python interpreter that SIMCLR_LIGHTLY names.
"""

import os

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.models import ResNetGenerator
from lightly.models.modules import heads
from lightly.transforms import SimCLRTransform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from PIL import Image

import learning_clock

BATCH_SIZE, PEAK = 128, 6e-2


class Views(torch.utils.data.Dataset):
    """Two views of each image."""

    def __init__(self, images):
        self.images = images
        self.transform = SimCLRTransform(
            input_size=images.shape[1], cj_strength=0.5, gaussian_blur=0.0
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index]))


class Model(torch.nn.Module):
    """Encoder and projection head."""

    def __init__(self):
        super().__init__()
        layers = list(ResNetGenerator("resnet-18").children())[:-1]
        self.backbone = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1))
        self.head = heads.SimCLRProjectionHead(512, 512, 128)

    def forward(self, images):
        with bfloat16(images.device):
            z = self.head(self.backbone(images).flatten(1))
        return z.float()


def bfloat16(device):
    """Returns a context in which convolutions and products compute in bfloat16."""
    return torch.autocast(device.type, torch.bfloat16)


def features(model, images, device):
    """Returns h of uint8 images, [n, D] float32."""
    model.eval()
    mean, std = (torch.tensor(IMAGENET_NORMALIZE[k])[:, None, None] for k in ("mean", "std"))
    found = []
    with torch.no_grad():
        for i in range(0, len(images), 512):
            batch = torch.from_numpy(images[i : i + 512]).permute(0, 3, 1, 2).float() / 255
            batch = ((batch - mean) / std).to(device)
            with bfloat16(batch.device):
                h = model.backbone(batch).flatten(1)
            found.append(h.float().cpu().numpy())
    model.train()
    return np.concatenate(found)


def main(options):
    """Trains until the clock is over."""
    torch.manual_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with np.load(options.data) as arrays:
        train, test = arrays["x_train"], arrays["x_test"]
    model, criterion = Model().to(device), NTXentLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=PEAK, momentum=0.9, weight_decay=5e-4)
    loader = torch.utils.data.DataLoader(
        Views(train),
        batch_size=min(BATCH_SIZE, len(train)),
        shuffle=True,
        drop_last=True,
        num_workers=min(8, os.cpu_count()),
        persistent_workers=True,
    )
    clock = learning_clock.Clock(
        options, lambda: [features(model, images, device) for images in (train, test)]
    )
    while not clock.is_over:
        for views in loader:
            for group in optimizer.param_groups:
                group["lr"] = learning_clock.cosine(PEAK, clock.progress)
            loss = criterion(*(model(view.to(device)) for view in views[:2]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()  # waits for the device
            clock.count(len(views[0]))
            if clock.is_over:
                break


if __name__ == "__main__":
    main(learning_clock.arguments())
