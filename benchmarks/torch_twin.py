"""The DDPM U-Net of `jaxdiff.models.UNet` in PyTorch, written from the same description.

The JAX network is checked and timed against it. `UNet()` is the straightforward module: nn.MultiheadAttention with its
default arguments, contiguous images. `UNet(tuned=True)` has the same parameters and uses PyTorch's fast paths:
channels_last images, and attention without returned weights, which uses the fused scaled_dot_product_attention.

    python benchmarks/torch_twin.py --golden=tests/golden/ddpm_unet.npz

writes the network's output in float64 for weights from a formula that tests/test_models.py shares, so that the test
needs no PyTorch. Needs the `bench` extra.
"""

import argparse
import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import silu


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, time_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time_dim, outputs)
        self.norm2 = nn.GroupNorm(8, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x))) + self.time(silu(time))[:, :, None, None]
        return self.conv2(silu(self.norm2(h))) + self.skip(x)


class SelfAttention(nn.Module):
    def __init__(self, channels: int, tuned: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.attention = nn.MultiheadAttention(channels, 4, batch_first=True)
        self.tuned = tuned

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        if self.tuned:
            h, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        else:
            h, _ = self.attention(tokens, tokens, tokens)
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class TimeEmbedding(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dense1 = nn.Linear(dim, dim)
        self.dense2 = nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        half = self.dense1.in_features // 2
        i = torch.arange(half, device=t.device, dtype=t.dtype)
        angle = (t * 1000 - 1)[:, None] * torch.exp(-math.log(10000) * i / half)
        features = torch.cat([angle.sin(), angle.cos()], dim=1)
        return self.dense2(silu(self.dense1(features.to(self.dense1.weight.dtype))))


class UNet(nn.Module):
    """(n, 1, 28, 28) and t (n,) in [0, 1] to (n, 1, 28, 28). Names are those of the JAX network."""

    down = (64, 128, 256)
    middle = (256, 128)
    up = (64, 32, 16)

    def __init__(self, tuned: bool = False) -> None:
        super().__init__()
        time_dim = 128
        self.tuned = tuned
        self.time = TimeEmbedding(time_dim)
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        parts: dict[str, nn.Module] = {}

        def pair(name: str, inputs: int, outputs: int) -> None:
            parts[f"{name}_block"] = ResidualBlock(inputs, outputs, time_dim)
            parts[f"{name}_attention"] = SelfAttention(outputs, tuned)

        channels, saved = 32, []
        for i, features in enumerate(self.down):
            if i > 0:
                parts[f"down{i}_halve"] = nn.Conv2d(channels, channels, 4, stride=2, padding=1)
            saved.append(channels)
            pair(f"down{i}_0", channels, features)
            pair(f"down{i}_1", features, features)
            channels = features
        for i, features in enumerate(self.middle):
            parts[f"middle{i}_0_block"] = ResidualBlock(channels, features, time_dim)
            pair(f"middle{i}_1", features, features)
            pair(f"middle{i}_2", features, features)
            channels = features
        for i, features in enumerate(self.up):
            if i > 0:
                parts[f"up{i}_double"] = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)
            pair(f"up{i}_0", channels + saved.pop(), features)
            pair(f"up{i}_1", features, features)
            channels = features
        self.parts = nn.ModuleDict(parts)
        self.norm = nn.GroupNorm(8, channels)
        self.head = nn.Conv2d(channels, 1, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if self.tuned:
            x = x.contiguous(memory_format=torch.channels_last)
        time, parts = self.time(t), self.parts

        def pair(h: Tensor, name: str) -> Tensor:
            return parts[f"{name}_attention"](parts[f"{name}_block"](h, time))

        h, saved = self.stem(x), []
        for i in range(len(self.down)):
            if i > 0:
                h = parts[f"down{i}_halve"](h)
            saved.append(h)
            h = pair(pair(h, f"down{i}_0"), f"down{i}_1")
        for i in range(len(self.middle)):
            h = parts[f"middle{i}_0_block"](h, time)
            for j in (1, 2):
                h = parts[f"middle{i}_{j}_block"](parts[f"middle{i}_{j}_attention"](h), time)
        for i in range(len(self.up)):
            if i > 0:
                h = parts[f"up{i}_double"](h)
            h = torch.cat([h, saved.pop()], dim=1)
            h = pair(pair(h, f"up{i}_0"), f"up{i}_1")
        return self.head(silu(self.norm(h)))


def make(tuned: bool) -> UNet:
    """The straightforward or the tuned module, with its weights laid out for it."""
    layout = torch.channels_last if tuned else torch.contiguous_format
    return UNet(tuned).to(memory_format=layout)


def to_torch(params: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Flax parameters under their paths, such as "stem/kernel", to a state for `UNet`.

    A dense kernel (in, out) and a convolution's (height, width, in, out) become (out, in, …). A
    transposed convolution of Flax is a correlation, PyTorch's a convolution: (in, out, …), flipped.
    """
    state = {}
    for path, value in params.items():
        *modules, leaf = path.split("/")
        if modules[0].startswith(("down", "middle", "up")):
            modules.insert(0, "parts")
        if modules[-1] == "qkv":
            name = "attention.in_proj_" + ("weight" if leaf == "kernel" else "bias")
        elif modules[-1] == "out":
            name = "attention.out_proj." + ("weight" if leaf == "kernel" else "bias")
        else:
            name = modules[-1] + "." + ("bias" if leaf == "bias" else "weight")
        if modules[-1] == "skip" and value.ndim == 2:
            value = value.T[:, :, None, None]
        elif value.ndim == 2:
            value = value.T
        elif value.ndim == 4 and modules[-1].endswith("double"):
            value = value.transpose(2, 3, 0, 1)
        elif value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        state[".".join([*modules[:-1], name])] = torch.from_numpy(np.ascontiguousarray(value))
    return state


def formula(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weights of tests/test_models.py: normal numbers that the parameter's path alone decides.

    RandomState, because NumPy keeps its numbers the same for ever.
    """
    normal = np.random.RandomState(zlib.crc32(path.encode())).standard_normal(shape)
    if path.endswith("kernel"):
        return normal / math.sqrt(math.prod(shape[:-1]))
    return 0.1 * normal + path.endswith("scale")


def write_golden(path: str) -> None:
    """Inputs, times and outputs in float64 of the network with the weights of `formula`."""
    import flax
    import jax

    from jaxdiff.models import UNet as FlaxUNet
    from jaxdiff.storage import replacing, user_path

    x = np.random.RandomState(0).standard_normal((3, 28, 28, 1)).astype(np.float32)
    t = np.array([0.001, 0.3, 1.0], np.float32)
    tree = jax.eval_shape(FlaxUNet().init, jax.random.key(0), x, t)["params"]
    shapes = flax.traverse_util.flatten_dict(tree, sep="/")
    weights = {path: formula(path, leaf.shape) for path, leaf in shapes.items()}
    outputs = {}
    for tuned in (False, True):
        twin = make(tuned).double()
        twin.load_state_dict(to_torch(weights))
        with torch.no_grad():
            images = torch.from_numpy(x).double().permute(0, 3, 1, 2)
            outputs[tuned] = twin(images, torch.from_numpy(t).double()).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(outputs[False], outputs[True], rtol=0, atol=1e-12)
    versions = [f"torch {torch.__version__}", f"numpy {np.__version__}"]
    with replacing(user_path(path, what="--golden")) as file:
        np.savez_compressed(file, x=x, t=t, y=outputs[False], made_with=np.array(versions))
    print(f"{path}: outputs of standard deviation {outputs[False].std():.3g}, {versions}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the golden outputs of the DDPM U-Net.")
    parser.add_argument("--golden", required=True, help="the .npz file to write")
    write_golden(parser.parse_args().golden)
