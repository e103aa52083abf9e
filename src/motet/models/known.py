"""The encoders that come with Motet; nothing of theirs is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points

ENTRY_POINTS = "motet.encoders"


@dataclass(frozen=True)
class EncoderInfo:
    """One encoder as the list shows it; ``target`` is "module:Class" and is imported on use."""

    name: str
    modality: str
    about: str
    source: str
    target: str


ENCODERS = (
    EncoderInfo(
        "hog-mlp",
        "image",
        "gradient histograms and mean colours, MLP on top",
        "Dalal and Triggs, CVPR 2005",
        "motet.models.hog:HogMLP",
    ),
    EncoderInfo(
        "hashed-mlp",
        "text",
        "hashed words and character trigrams, MLP on top",
        "Weinberger et al., ICML 2009",
        "motet.models.hashed:HashedMLP",
    ),
    EncoderInfo(
        "resnet-gn",
        "image",
        "small residual network with GroupNorm, from scratch",
        "He et al., CVPR 2016",
        "motet.models.resnet:ResNetGN",
    ),
    EncoderInfo(
        "pixel-mlp",
        "image",
        "fully connected layers on the pixels",
        "McMahan et al., AISTATS 2017",
        "motet.models.pixels:PixelMLP",
    ),
    EncoderInfo(
        "cnn",
        "image",
        "small CNN with a choice of norm, from scratch",
        "LeCun et al., Proc. IEEE 1998",
        "motet.models.pixels:CNN",
    ),
    EncoderInfo(
        "gcn",
        "graph",
        "graph convolutions over the nodes of a batch (extra: graph)",
        "Kipf and Welling, ICLR 2017",
        "motet.models.gcn:GCN",
    ),
    EncoderInfo(
        "vit",
        "image",
        "vision transformer, from scratch or pre-trained",
        "Dosovitskiy et al., ICLR 2021",
        "motet.models.vit:ViT",
    ),
    EncoderInfo(
        "random-features",
        "image",
        "frozen random ReLU features of the pixels, one width of them",
        "Rahimi and Recht, NeurIPS 2008",
        "motet.models.random_features:RandomFeatures",
    ),
    EncoderInfo(
        "efficientnet-lite0",
        "image",
        "frozen ImageNet trunk, MLP on top (extra: pretrained)",
        "Tan and Le, ICML 2019",
        "motet.models.efficientnet:EfficientNetMLP",
    ),
    EncoderInfo(
        "gru",
        "text",
        "word pieces through a recurrent network (extra: text)",
        "Cho et al., EMNLP 2014",
        "motet.models.text:GRUText",
    ),
    EncoderInfo(
        "transformer",
        "text",
        "word pieces through a small transformer (extra: text)",
        "Vaswani et al., NeurIPS 2017",
        "motet.models.text:TransformerText",
    ),
    EncoderInfo(
        "minilm",
        "text",
        "frozen sentence encoder, MLP on top (extra: pretrained)",
        "Wang et al., NeurIPS 2020",
        "motet.models.minilm:MiniLMMLP",
    ),
)
BY_NAME = {info.name: info for info in ENCODERS}


def list_encoders() -> tuple[EncoderInfo, ...]:
    """All encoders by name: Motet's own and those of installed packages."""
    others = [e for e in entry_points(group=ENTRY_POINTS) if e.name not in BY_NAME]
    if not others:
        return tuple(sorted(ENCODERS, key=lambda info: info.name))
    from motet.models.registry import described

    found = [*ENCODERS, *(described(entry) for entry in others)]
    return tuple(sorted(found, key=lambda info: info.name))
