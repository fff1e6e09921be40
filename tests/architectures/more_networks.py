"""Networks of other kinds, each with data and the loss that it is trained by."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as fn

from tests.architectures.networks import Transformer, digits, tokens


class TiedGPT(nn.Module):
    """A causal transformer whose output layer is its table of tokens."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(8, 16)
        self.position = nn.Parameter(0.1 * torch.randn(12, 16))
        self.query, self.key, self.value, self.mix = (nn.Linear(16, 16) for _ in range(4))
        self.wide, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)

    def forward(self, x):
        h = self.table(x) + self.position[: x.shape[1]]
        own = self.first(h)
        heads = (f(own).unflatten(-1, (2, 8)) for f in (self.query, self.key, self.value))
        q, k, v = (part.transpose(1, 2) for part in heads)
        found = fn.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.mix(found.transpose(1, 2).flatten(2))
        h = h + self.narrow(fn.gelu(self.wide(self.second(h))))
        return fn.linear(h, self.table.weight)


class GraphNet(nn.Module):
    """Messages along the edges of a ring, summed where they arrive."""

    def __init__(self):
        super().__init__()
        self.first, self.own, self.message = (
            nn.Linear(4, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        )  # fmt: skip
        self.out = nn.Linear(12, 3)

    def forward(self, x, edges):
        h = self.first(x).relu()
        for _ in range(2):
            arrived = torch.zeros_like(h).index_add(1, edges[1], self.message(h)[:, edges[0]])
            h = (self.own(h) + arrived).relu()
        return self.out(h.mean(1))


class DiffusionUNet(nn.Module):
    """Tells the noise in an image from the image and how much noise there is."""

    def __init__(self):
        super().__init__()
        self.enter, self.down = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 12, 3, 2, padding=1)
        self.time, self.middle = nn.Linear(1, 12), nn.Conv2d(12, 12, 3, padding=1)
        self.up, self.leave = nn.ConvTranspose2d(12, 8, 2, 2), nn.Conv2d(16, 1, 3, padding=1)
        self.norm = nn.GroupNorm(2, 12)

    def forward(self, x, t):
        skip = fn.silu(self.enter(x))
        h = self.down(skip) + self.time(t[:, None])[:, :, None, None]
        h = fn.silu(self.middle(fn.silu(self.norm(h))))
        return self.leave(torch.cat([fn.silu(self.up(h)), skip], 1))


class LowRank(nn.Module):
    """A transformer with a frozen base and low-rank updates of its feed-forward layers (LoRA)."""

    def __init__(self):
        super().__init__()
        self.base = Transformer()
        self.base.requires_grad_(False)
        self.base.decoder.requires_grad_(True)
        self.a1, self.b1 = nn.Linear(8, 3, bias=False), nn.Linear(3, 16, bias=False)
        self.a2, self.b2 = nn.Linear(16, 3, bias=False), nn.Linear(3, 8, bias=False)

    def forward(self, x):
        h = self.base.embedding(x) + self.base.position
        layer = self.base.encoder.layers[0]
        h = layer.norm1(h + layer.self_attn(h, h, h, need_weights=False)[0])
        wide = (layer.linear1(h) + self.b1(self.a1(h))).relu()
        h = layer.norm2(h + layer.linear2(wide) + self.b2(self.a2(wide)))
        return self.base.decoder(h.mean(1))


def tiny_bert():
    """A BERT of transformers; imported here, since it takes seconds."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"vocab_size": 6, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "max_position_embeddings": 12, "num_labels": 3}
    config = BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return BertForSequenceClassification(config)


def classified(draw):
    """Batches whose inputs are one tensor, and the loss of the classes."""

    def batch(count, generator):
        x, labels = draw(count, generator)
        return (x,), labels

    return batch


def counting(count, generator):
    """Sequences in which every token is the last one and a step more, modulo 8; next tokens."""
    start = torch.randint(8, (count, 1), generator=generator)
    step = torch.randint(1, 4, (count, 1), generator=generator)
    x = (start + step * torch.arange(12)) % 8
    return (x[:, :-1],), x[:, 1:]


def rings(count, generator):
    """Six nodes with four numbers each; the class is which of three sums is the largest."""
    x = torch.randn(count, 6, 4, generator=generator)
    nodes = torch.arange(6)
    return (x, torch.stack([nodes, nodes.roll(-1)])), x.sum(1)[:, :3].argmax(1)


def noisy(count, generator):
    """Digits with noise, how much there is, and the noise."""
    images, _ = digits(count, generator)
    share = torch.rand(count, generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    mixed = (1 - share).sqrt()[:, None, None, None] * images
    return (mixed + share.sqrt()[:, None, None, None] * noise, share), noise


def of_tokens(output, labels):
    return fn.cross_entropy(output.flatten(0, -2), labels.flatten())


def of_object(output, labels):
    return fn.cross_entropy(output.logits, labels)


@dataclass(frozen=True)
class Kind:
    """A network, its data, its loss, and by what share training must lower the loss.

    Parameters
    ----------
    make : callable
        Makes the network.
    draw : callable
        A tuple of inputs, and targets, from a number of examples and a generator.
    loss : callable
        Of an output and targets.
    least : float
        The most that the loss may come to, as a share of what it was.
    """

    make: Callable
    draw: Callable
    loss: Callable
    least: float


KINDS = {
    "bert": Kind(tiny_bert, classified(tokens), of_object, 0.9),
    "tied_gpt": Kind(TiedGPT, counting, of_tokens, 0.8),
    "lora": Kind(LowRank, classified(tokens), fn.cross_entropy, 0.97),
    "graph": Kind(GraphNet, rings, fn.cross_entropy, 0.8),
    "diffusion": Kind(DiffusionUNet, noisy, fn.mse_loss, 0.7),
}
