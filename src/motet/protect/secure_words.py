"""What a secure sum is made of: fixed point, masks, keys, sealed shares; all pure functions.

Numbers travel as 32-bit words that add up modulo 2^32, negative ones in two's complement.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from motet.core.errors import ConfigError, WireError

Words: TypeAlias = NDArray[np.uint32]

KEY_BYTES = 32
DIGEST_BYTES = 32
# A part of a mask at a time: 256 KiB stay in a core's cache between drawing and adding.
_PART = 2**16
_ZEROS = bytes(4 * _PART)
# Both ends of a mask read its bytes in the same order, whatever the machine.
_LITTLE = np.dtype("<u4")


def cryptography(module: str) -> Any:
    """A module of the optional package; raises ConfigError that says how to install it."""
    try:
        return importlib.import_module(f"cryptography.{module}")
    except ModuleNotFoundError:
        raise ConfigError(
            "protect.secure_sum needs the package cryptography: pip install 'motet[secure]'"
        ) from None


def step_of(clip: float, bits: int) -> float:
    """What one unit of a word stands for, where values from -clip to clip take ``bits`` bits."""
    return clip / float(2 ** (bits - 1) - 1)


def to_words(
    vector: Tensor, weight: float, clip: float, bits: int, rng: torch.Generator | None = None
) -> Words:
    """Weight * values cut to [-clip, clip], in fixed point: float [d] -> uint32 [d].

    weight: 0 to 1. rng: rounds up or down at random, so that the mean error is 0; without one to
    the nearest step. Raises WireError for values that are not finite.
    """
    if vector.dim() != 1 or not vector.is_floating_point():
        form = f"{vector.dtype} {tuple(vector.shape)}"
        raise WireError(f"a secure sum takes a vector of real numbers, not {form}")
    if not 0 <= weight <= 1:
        raise WireError(f"a weight in a secure sum is a share from 0 to 1, not {weight}")
    # Double, since single precision would be off by an eighth of a step.
    values = vector.detach().to("cpu", torch.float64, copy=True)
    if not bool(torch.isfinite(values).all()):
        raise WireError("a secure sum cannot take values that are not finite")
    values.div_(clip).clamp_(-1, 1).mul_(weight * (2 ** (bits - 1) - 1))
    if rng is None:
        values.round_()
    else:
        values.add_(torch.rand(values.shape, generator=rng, dtype=torch.float64)).floor_()
    return values.to(torch.int32).numpy().view(np.uint32)


def from_words(words: Words, clip: float, bits: int) -> Tensor:
    """The real numbers that words stand for: uint32 [d] -> float64 [d]."""
    return torch.from_numpy(words.view(np.int32)).to(torch.float64).mul_(step_of(clip, bits))


def add_mask(words: Words, key: bytes, *, minus: bool = False) -> None:
    """Adds to the words, in place, what AES in counter mode makes of a key; or takes it off.

    key: 32 bytes, for one mask alone.
    """
    ciphers = cryptography("hazmat.primitives.ciphers")
    cipher = ciphers.Cipher(ciphers.algorithms.AES(key), ciphers.modes.CTR(bytes(16)))
    encryptor = cipher.encryptor()
    drawn = np.empty(4 * min(len(words), _PART) + 16, dtype=np.uint8)
    operation = np.subtract if minus else np.add
    for start in range(0, len(words), _PART):
        part = words[start : start + _PART]
        encryptor.update_into(memoryview(_ZEROS)[: part.nbytes], drawn)
        operation(part, drawn[: part.nbytes].view(_LITTLE), out=part)


def public_key(private: bytes) -> bytes:
    """The X25519 public key, 32 bytes, of a private one of any 32 bytes."""
    x25519 = cryptography("hazmat.primitives.asymmetric.x25519")
    public: bytes = (
        x25519.X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    )
    return public


def agreed(private: bytes, public: bytes) -> bytes:
    """What two ends agree on by X25519; WireError for a public key that would agree on nothing."""
    x25519 = cryptography("hazmat.primitives.asymmetric.x25519")
    other = x25519.X25519PublicKey.from_public_bytes(public)
    try:
        secret: bytes = x25519.X25519PrivateKey.from_private_bytes(private).exchange(other)
    except ValueError:
        raise WireError("this public key makes every secret the same") from None
    return secret


def derived(secret: bytes, *about: str) -> bytes:
    """A key of 32 bytes for one use, from a secret and a description of the use (HKDF-SHA256)."""
    hashes = cryptography("hazmat.primitives.hashes")
    hkdf = cryptography("hazmat.primitives.kdf.hkdf").HKDF
    key: bytes = hkdf(hashes.SHA256(), KEY_BYTES, salt=None, info=_text(about)).derive(secret)
    return key


def pair_mask(private: bytes, public: bytes, tag: str, one: str, other: str) -> bytes:
    """The key of the mask that two sites share, whichever of them asks."""
    return derived(agreed(private, public), "pair mask", tag, *sorted((one, other)))


def self_mask(seed: bytes, tag: str, site: str) -> bytes:
    """The key of the mask that a site has of its own."""
    return derived(seed, "self mask", tag, site)


def seal(secret: bytes, plain: bytes, *about: str) -> bytes:
    """Plain bytes encrypted and authenticated by AES-GCM, 16 bytes longer.

    about: what they are, such as from whom, to whom, in answer to what. No secret may seal two
    texts about the same.
    """
    aesgcm = cryptography("hazmat.primitives.ciphers.aead").AESGCM
    # A nonce need only differ between texts under one key, and this key seals a single one.
    box: bytes = aesgcm(derived(secret, "box", *about)).encrypt(bytes(12), plain, _text(about))
    return box


def unseal(secret: bytes, box: bytes, *about: str) -> bytes:
    """What was sealed; WireError for anything that was not sealed so, about the same."""
    aesgcm = cryptography("hazmat.primitives.ciphers.aead").AESGCM
    invalid = cryptography("exceptions").InvalidTag
    try:
        plain: bytes = aesgcm(derived(secret, "box", *about)).decrypt(bytes(12), box, _text(about))
    except invalid:
        raise WireError("it was changed on its way, or belongs to another question") from None
    return plain


def digest(share: bytes, *about: str) -> bytes:
    """What a share can be recognised by, 32 bytes, and not found out from."""
    return hashlib.sha256(_text(about) + share).digest()


def _text(about: Sequence[str]) -> bytes:
    return json.dumps(["motet secure sum", *about]).encode()


def neighbourhoods(
    sites: Sequence[str], count: int | None, rng: torch.Generator
) -> dict[str, tuple[str, ...]]:
    """Site -> its neighbours, sorted: ``count`` each (an even number), or all others for None.

    Sites stand in a ring in random order, each with the nearest of both sides (Bell et al. 2020).
    """
    if count is None or count >= len(sites) - 1:
        return {site: tuple(sorted(set(sites) - {site})) for site in sites}
    order = torch.randperm(len(sites), generator=rng).tolist()
    ring = [sites[i] for i in order]
    reach = [offset for i in range(1, count // 2 + 1) for offset in (i, -i)]
    return {
        site: tuple(sorted(ring[(place + offset) % len(ring)] for offset in reach))
        for place, site in enumerate(ring)
    }


def to_tensor(octets: bytes) -> Tensor:
    """Bytes as uint8 [n], as they travel."""
    return torch.frombuffer(bytearray(octets), dtype=torch.uint8)


def to_bytes(value: Any, size: int, what: str) -> bytes:
    """The bytes of a uint8 [size] that came in; WireError for anything else."""
    if is_vector(value, torch.uint8) and len(value) == size:
        octets: bytes = value.cpu().numpy().tobytes()
        return octets
    raise WireError(f"{what} is not {size} bytes")


def is_vector(value: Any, dtype: torch.dtype) -> bool:
    """Whether what came in is a plain tensor [d] of this dtype."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
        return False
    return value.dtype == dtype and value.dim() == 1


def to_named(value: Any, names: Sequence[str], what: str) -> dict[str, Any]:
    """A dict that came in, if its names are these; WireError for anything else."""
    if isinstance(value, dict) and value.keys() == set(names):
        return value
    raise WireError(f"{what} must name {', '.join(sorted(names)) or 'nobody'} and nothing else")
