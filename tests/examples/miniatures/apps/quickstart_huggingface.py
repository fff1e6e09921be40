"""Habits of quickstart-huggingface: a tiny BERT, batches that are dicts, AdamW, its own loss."""

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from transformers import AutoModelForSequenceClassification, BertConfig

app = ClientApp()
server = ServerApp()
CONFIG = BertConfig(
    vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=4,
    intermediate_size=32, max_position_embeddings=12, initializer_range=0.2,
)  # fmt: skip


def get_model():
    return AutoModelForSequenceClassification.from_config(CONFIG)


def load_data(client, count=320):
    """Sentences of 12 tokens, the last ones padding; a class has words that it likes."""
    generator = torch.Generator().manual_seed(client)
    liked = torch.ones(4) + 3 * (torch.arange(4) == client % 4)  # a client's classes are uneven
    labels = torch.multinomial(liked, count, replacement=True, generator=generator)
    own = 3 + 9 * labels[:, None] + torch.randint(0, 9, (count, 12), generator=generator)
    any_word = torch.randint(3, 40, (count, 12), generator=generator)
    ids = torch.where(torch.rand(count, 12, generator=generator) < 0.4, own, any_word)
    ids[:, 0] = 1
    mask = (torch.arange(12) < torch.randint(6, 13, (count, 1), generator=generator)).long()
    return [
        {"input_ids": ids[i : i + 16] * mask[i : i + 16], "attention_mask": mask[i : i + 16],
         "labels": labels[i : i + 16]}
        for i in range(0, count, 16)
    ]  # fmt: skip


@app.train()
def train(msg, context):
    net = get_model()
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict(), strict=True)
    trainloader = load_data(context.node_config["partition-id"])
    optimizer = torch.optim.AdamW(net.parameters(), lr=context.run_config["lr"])
    net.train()
    for batch in trainloader:
        outputs = net(**batch)
        outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    metrics = MetricRecord({"num-examples": 16 * len(trainloader)})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=msg)


@server.main()
def main(grid, context):
    net = get_model()
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(net.state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )


@torch.no_grad()
def global_evaluate(server_round, arrays):
    net = get_model()
    net.load_state_dict(arrays.to_torch_state_dict())
    hits = [
        net.eval()(**batch).logits.argmax(1) == batch["labels"]
        for client in range(100, 104) for batch in load_data(client, 160)
    ]  # fmt: skip
    return MetricRecord({"score": torch.cat(hits).float().mean().item()})
