"""CreamFL as a researcher would write it from the paper: plain PyTorch, nothing clever.

What it does, and what the official code (FLAIR-THU/CreamFL) does in the same place:

- Inputs come from ``Dataset.__getitem__`` through a ``DataLoader``: a picture is decoded, resized
  and turned into features whenever it is read, a text is tokenised whenever it is read. The
  official code decodes, resizes and crops every picture, and tokenises every caption, at every
  access. With ``ready=True`` features are made once beforehand and the loader collates them: what
  somebody does who has noticed that nothing here is random.
- The old model is a ``deepcopy`` at the start of a site's turn, and goes through every public batch
  beside the new one (official: ``old_model`` in the client trainers).
- Both contrasts build their logits in full: b x P for the inter-modal one, b x 2 for the
  intra-modal one, with ``cross_entropy`` on top (official: the same).
- Aggregation holds the P x P logits and their exponentials for each site (official: the same, as
  ``exp_logits`` and ``log_prob``).
- Ranks come from sorting each query's similarities and looking the right one up (official: the
  same, 32 queries at a time and with a look-up per query, which is slower than what is here).
- The optimiser is ``torch.optim.Adam`` as it comes.

What it leaves out because no result depends on it: logging, checkpoints, messages. No loader has
worker processes: they would move work to another core, not save any. Losses and schedules are those
of Motet's recipe, so that both do the same steps; the order of rows is given from outside.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from motet.models.hashed import text_features
from motet.models.hog import SIDE, picture_features

OTHER = {"image": "text", "text": "image"}


class Rows(Dataset[dict[str, Any]]):
    """Pictures as files, texts as strings, labels; ``ready`` makes their features beforehand."""

    def __init__(
        self,
        files: Sequence[bytes] | None,
        texts: Sequence[str] | None,
        labels: Tensor,
        ready: bool = False,
    ) -> None:
        self.files = files
        self.texts = texts
        self.labels = labels
        self.made: list[dict[str, Any]] | None = None
        if ready:
            self.made = [self[i] for i in range(len(self))]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        if self.made is not None:
            return self.made[i]
        item = {"row": i, "label": self.labels[i]}
        if self.files is not None:
            picture = Image.open(io.BytesIO(self.files[i])).convert("RGB")
            picture = picture.resize((SIDE, SIDE), Image.Resampling.BOX)
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
            item["image"] = picture_features(pixels.unsqueeze(0))[0]
        if self.texts is not None:
            item["text"] = text_features((self.texts[i],), 1024)[0]
        return item

    def batches(self, order: Sequence[Tensor]) -> DataLoader[dict[str, Any]]:
        """A loader of these batches of positions."""
        return DataLoader(self, batch_sampler=[at.tolist() for at in order])

    def in_order(self) -> DataLoader[dict[str, Any]]:
        """A loader of all rows, for encoding."""
        return DataLoader(self, batch_size=128)


class Model(nn.Module):
    """One encoder per modality, onto the unit sphere, and a class head where there is one."""

    def __init__(self, encoders: nn.ModuleDict, head: nn.Module | None) -> None:
        super().__init__()
        self.encoders = encoders
        self.head = head

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Modality -> unit embeddings."""
        return {k: F.normalize(e(batch[k]), dim=-1) for k, e in self.encoders.items()}

    def classify(self, batch: dict[str, Tensor]) -> Tensor:
        """Class scores of a model of one modality."""
        assert self.head is not None
        ((name, encoder),) = self.encoders.items()
        scores: Tensor = self.head(F.gelu(encoder(batch[name])))
        return scores


@dataclass
class Party:
    """A model with its optimisers and rows; ``steps`` and ``rows`` count what it was trained on."""

    model: Model
    data: Rows
    test: Rows
    lr: float
    steps: int = 0
    rows: int = 0
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)

    def optimizer(self, name: str) -> torch.optim.Optimizer:
        """The optimiser of this name, which persists."""
        if name not in self.optimizers:
            self.optimizers[name] = torch.optim.Adam(self.model.parameters(), lr=self.lr)
        return self.optimizers[name]

    def step(self, name: str, loss: Tensor, rows: int) -> None:
        """One step down this loss."""
        optimizer = self.optimizer(name)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        self.steps += 1
        self.rows += rows


def encode(model: Model, data: Rows) -> dict[str, Tensor]:
    """Modality -> embeddings of all rows."""
    model.eval()
    parts: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for batch in data.in_order():
            for name, z in model(batch).items():
                parts.setdefault(name, []).append(z)
    return {name: torch.cat(z) for name, z in parts.items()}


def info_nce(image: Tensor, text: Tensor, tau: float) -> Tensor:
    """The symmetric contrast of a batch of pairs."""
    logits = image @ text.T / tau
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def contrast(
    z: dict[str, Tensor],
    old: dict[str, Tensor],
    ours: dict[str, Tensor],
    at: Tensor,
    tau: float,
) -> Tensor:
    """Inter-modal and intra-modal contrast of one public batch."""
    inter = sum(F.cross_entropy(z[k] @ ours[OTHER[k]].T / tau, at) for k in z)
    new = torch.cat([z[k] for k in z])
    towards = (new * torch.cat([ours[k][at] for k in z])).sum(dim=1, keepdim=True)
    away = (new * torch.cat([old[k] for k in z])).sum(dim=1, keepdim=True)
    logits = torch.cat([towards, away], dim=1) / tau
    return inter + F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))


def aggregate(sent: Sequence[Tensor], other: Tensor) -> Tensor:
    """Global-local contrastive aggregation with every matrix in full."""
    scores = []
    for local in sent:
        logits = local @ other.T
        exp_logits = torch.exp(logits)
        log_prob = logits - torch.log(exp_logits.sum(dim=1, keepdim=True))
        scores.append(log_prob.diagonal())
    weights = torch.stack(scores).softmax(dim=0)
    return (weights.unsqueeze(2) * torch.stack(list(sent))).sum(dim=0)


def recalls(image: Tensor, text: Tensor) -> float:
    """Sum of recall at 1, 5 and 10 both ways, in percent."""
    total = 0.0
    own = torch.arange(len(image)).unsqueeze(1)
    for queries, gallery in ((image, text), (text, image)):
        order = (queries @ gallery.T).argsort(dim=1, descending=True)
        ranks = (order == own).nonzero()[:, 1]
        total += sum(100 * float((ranks < cut).double().mean()) for cut in (1, 5, 10))
    return total


def same_label(image: Tensor, text: Tensor, labels: Tensor) -> float:
    """Share of the first ten that have the query's label, both ways, in percent."""
    shares = []
    for queries, gallery in ((image, text), (text, image)):
        top = (queries @ gallery.T).argsort(dim=1, descending=True)[:, :10]
        shares.append(float((labels[top] == labels[:, None]).double().mean()))
    return 50 * sum(shares)


class CreamFL:
    """The whole method over a server and its sites; ``round`` runs one and returns the rsum.

    method: the recipe's hyper-parameters. order: (party, key, rows) -> positions of each batch.
    """

    def __init__(
        self, server: Party, sites: dict[str, Party], public: Any, method: Any, order: Any
    ) -> None:
        self.server = server
        self.sites = sites
        self.public: Rows = public
        self.method = method
        self.order = order

    def round(self, number: int) -> float:
        """Server training, sites' turns, aggregation, distillation, evaluation of all."""
        self.train_server(number)
        ours = encode(self.server.model, self.public)
        sent: dict[str, list[Tensor]] = {"image": [], "text": []}
        for name, site in self.sites.items():
            for modality, rows in self.turn(name, site, number, ours).items():
                sent[modality].append(rows)
        targets = {k: aggregate(rows, ours[OTHER[k]]) for k, rows in sent.items()}
        self.distil(number, targets)
        for site in self.sites.values():
            self.evaluate(site)
        return self.evaluate(self.server)

    def train_server(self, number: int) -> None:
        """Step A: the task on the public pairs."""
        settings = self.method.server
        epochs = settings.epochs + (settings.first_epochs if number == 0 else 0)
        self.server.model.train()
        for epoch in range(epochs):
            order = self.order("task", number, "hub", epoch, len(self.public))
            for batch in self.public.batches(order):
                z = self.server.model(batch)
                loss = info_nce(z["image"], z["text"], settings.loss.tau)
                self.server.step("task", loss, len(batch["row"]))

    def turn(
        self, name: str, site: Party, number: int, ours: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """A site's epochs: private pass, then public pass; what it uploads."""
        method = self.method
        old_model = copy.deepcopy(site.model)
        old_model.eval()
        for epoch in range(method.private.epochs):
            site.model.train()
            for batch in site.data.batches(
                self.order("private", number, name, epoch, len(site.data))
            ):
                if site.model.head is None:
                    z = site.model(batch)
                    loss = info_nce(z["image"], z["text"], method.private.pair.tau)
                else:
                    loss = F.cross_entropy(site.model.classify(batch), batch["label"])
                site.step("local", loss, len(batch["row"]))
            for batch in self.public.batches(
                self.order("public", number, name, epoch, len(self.public))
            ):
                with torch.no_grad():
                    old = old_model(batch)
                loss = contrast(site.model(batch), old, ours, batch["row"], method.tau)
                site.step("local", method.gamma * loss, len(batch["row"]))
        return encode(site.model, self.public)

    def distil(self, number: int, targets: dict[str, Tensor]) -> None:
        """Step B: towards the aggregate, with the task beside it."""
        settings = self.method.distil
        self.server.model.train()
        for epoch in range(settings.epochs):
            order = self.order("distil", number, "hub", epoch, len(self.public))
            for batch in self.public.batches(order):
                z = self.server.model(batch)
                gaps = sum(((z[k] - targets[k][batch["row"]]) ** 2).sum(1).mean() for k in z)
                task = info_nce(z["image"], z["text"], self.method.server.loss.tau)
                loss = settings.weight * gaps + settings.task_weight * task
                self.server.step("distil", loss, len(batch["row"]))

    def evaluate(self, party: Party) -> float:
        """rsum of a model of pairs, accuracy of another, on its test rows."""
        model = party.model
        if model.head is not None:
            right, total = 0, 0
            model.eval()
            with torch.no_grad():
                for batch in party.test.in_order():
                    right += int((model.classify(batch).argmax(1) == batch["label"]).sum())
                    total += len(batch["label"])
            return 100 * right / total
        z = encode(model, party.test)
        same_label(z["image"], z["text"], party.test.labels)
        return recalls(z["image"], z["text"])

    def parties(self) -> Iterator[tuple[str, Party]]:
        """Server and sites by name."""
        yield "hub", self.server
        yield from self.sites.items()
