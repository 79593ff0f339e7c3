"""The official transform (Pillow and torchvision, one process per core), as the peer of input_pipeline.py.

    python input_pipeline_torchvision.py FOLDER BATCH_SIZE WORKERS

Prints its name, then for each number of images read from standard input how many it made per second. Written from the
paper's appendix A; needs only torch, torchvision and Pillow.
"""

import random
import sys
import time

import PIL
import torch
import torchvision
from PIL import ImageFilter, ImageOps
from torchvision import transforms
from torchvision.transforms import InterpolationMode


class Sometimes:
    """A function of an image, with a probability."""

    def __init__(self, p, function):
        self.p, self.function = p, function

    def __call__(self, image):
        return self.function(image) if random.random() < self.p else image


def blur(image):
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def view(blur_p, solarize_p):
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(224, interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            Sometimes(blur_p, blur),
            Sometimes(solarize_p, ImageOps.solarize),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )


class TwoViews:
    def __init__(self):
        self.views = view(1.0, 0.0), view(0.1, 0.2)

    def __call__(self, image):
        return [make(image) for make in self.views]


def batches(folder, batch_size, workers):
    dataset = torchvision.datasets.ImageFolder(folder, TwoViews())
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=batch_size, num_workers=workers, shuffle=True, drop_last=True, persistent_workers=True
    )
    while True:
        yield from loader


def main():
    folder, batch_size, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    stream = batches(folder, batch_size, workers)
    next(stream)
    print(f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}, {workers} workers", flush=True)
    for line in sys.stdin:
        for _ in range(2 * workers):  # what was made while the other had its turn
            next(stream)
        steps = max(1, int(line) // batch_size)
        start = time.perf_counter()
        for _ in range(steps):
            next(stream)
        print(steps * batch_size / (time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    main()
