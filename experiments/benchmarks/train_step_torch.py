"""The peer of train_step.py: Barlow Twins' model, loss and LARS in plain PyTorch, as the paper and the official code
describe them (Zbontar et al. 2021, sections 2.1 and 2.2; He et al. 2016 for the encoder). Channels last, autocast for bfloat16,
compiled by torch.compile.
"""

import torch
import torch.nn.functional as F
from torch import nn

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=(size - 1) // 2, bias=False)


class Block(nn.Module):
    """A basic block of two convolutions, or a bottleneck of three with the stride on the middle one."""

    def __init__(self, inputs: int, channels: int, stride: int, bottleneck: bool):
        super().__init__()
        outputs = 4 * channels if bottleneck else channels
        if bottleneck:
            convs = [conv(inputs, channels, 1), conv(channels, channels, 3, stride), conv(channels, outputs, 1)]
        else:
            convs = [conv(inputs, channels, 3, stride), conv(channels, channels, 3)]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c.out_channels) for c in convs)
        nn.init.zeros_(self.norms[-1].weight)
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.outputs = outputs

    def forward(self, x):
        y = x
        for i, (c, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(c(y))
            if i < len(self.convs) - 1:
                y = F.relu(y)
        return F.relu(y + self.shortcut(x))


def resnet(arch: str, small_images: bool, width: int) -> tuple[nn.Module, int]:
    """The encoder without its classifier, and the number of its features."""
    if small_images:
        layers = [conv(3, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
    else:
        layers = [conv(3, width, 7, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    first = width
    for stage, count in enumerate(BLOCKS[arch]):
        for i in range(count):
            stride = 2 if stage > 0 and i == 0 else 1
            block = Block(width, first * 2**stage, stride, bottleneck=arch == "resnet50")
            layers.append(block)
            width = block.outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), width


class BarlowTwins(nn.Module):
    """Two views -> the loss: D terms of (C_ii - 1)² and λ times the sum of C_ij² over i ≠ j."""

    def __init__(self, arch: str, small_images: bool, width: int, projector: tuple[int, ...], lambd: float):
        super().__init__()
        self.encoder, width = resnet(arch, small_images, width)
        layers = []
        for size in projector[:-1]:
            layers += [nn.Linear(width, size, bias=False), nn.BatchNorm1d(size), nn.ReLU()]
            width = size
        self.projector = nn.Sequential(*layers, nn.Linear(width, projector[-1], bias=False))
        self.norm = nn.BatchNorm1d(projector[-1], affine=False)
        self.lambd = lambd
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).reshape(1, 3, 1, 1))

    def embedding(self, images):
        x = (images.float() / 255 - self.mean) / self.std
        return self.projector(self.encoder(x.to(memory_format=torch.channels_last)))

    def forward(self, view_a, view_b):
        z_a, z_b = self.norm(self.embedding(view_a)), self.norm(self.embedding(view_b))
        c = (z_a.T @ z_b / len(view_a)).float()
        diagonal = torch.diagonal(c)
        squares = c.square().sum() - diagonal.square().sum()
        return (diagonal - 1).square().sum() + self.lambd * squares


class Lars(torch.optim.Optimizer):
    """Decay, trust ratio, momentum, rate, in this order; parameters of one axis are neither decayed nor adapted."""

    def __init__(self, parameters, rate_weights: float, rate_biases: float, decay=1e-6, momentum=0.9, trust=0.001):
        super().__init__(parameters, {})
        self.rates, self.decay, self.momentum, self.trust = (rate_weights, rate_biases), decay, momentum, trust

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                update, rate = p.grad, self.rates[p.ndim == 1]
                if p.ndim > 1:
                    update = update + self.decay * p
                    size, change = torch.norm(p), torch.norm(update)
                    ratio = self.trust * size / change
                    update = update * torch.where((size > 0) & (change > 0), ratio, torch.ones_like(ratio))
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].mul_(self.momentum).add_(update)
                p.sub_(rate * state["momentum"])


class Peer:
    """A training step on batches (N, 2, S, S, 3) uint8, with its cost."""

    def __init__(self, arch, small_images, width, projector, batches, *, rates, dtype: str, compile: bool):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as JAX does
            torch.backends.cudnn.benchmark = True
            torch.cuda.reset_peak_memory_stats()
        self.model = BarlowTwins(arch, small_images, width, projector, 0.0051).to(
            self.device, memory_format=torch.channels_last
        )
        self.optimizer = Lars(self.model.parameters(), *rates)
        torch._dynamo.reset()  # or a second case would be compiled for batches of any size, on account of the first
        self.forward = torch.compile(self.model, dynamic=False) if compile else self.model
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == "bfloat16")
        self.batches = [
            [torch.tensor(batch[:, v]).permute(0, 3, 1, 2).to(self.device, memory_format=torch.channels_last) for v in range(2)]
            for batch in batches
        ]  # fmt: skip
        self.made = 0

    @property
    def name(self) -> str:
        return f"PyTorch {torch.__version__}"

    def turn(self, steps: int) -> None:
        """Runs `steps` steps to their end."""
        for _ in range(steps):
            view_a, view_b = self.batches[self.made % len(self.batches)]
            self.optimizer.zero_grad(set_to_none=True)
            with self.autocast:
                loss = self.forward(view_a, view_b)
            loss.backward()
            self.optimizer.step()
            self.made += 1
        self.loss = float(loss.detach())  # waits for the device

    @torch.no_grad()
    def forward_only(self, steps: int) -> None:
        """The losses of as many batches, without gradients, with batch statistics as in training."""
        for n in range(steps):
            with self.autocast:
                loss = self.forward(*self.batches[n % len(self.batches)])
        float(loss)  # waits for the device

    def memory(self) -> int | None:
        """The device's peak of allocated bytes, or None if it is not counted."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None
