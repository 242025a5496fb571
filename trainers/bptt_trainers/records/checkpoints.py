"""Checkpoints: tensors and plain values in a file of torch's, which no file can make run code."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bptt_trainers.records.files import DATA_LIMIT, RunFolderError, first_line


def packed(
    checkpoint: Mapping[str, Any], owner: str, known: frozenset[str] = frozenset()
) -> tuple[bytes, frozenset[str]]:
    """The bytes of a checkpoint. They are loaded once, unless all kinds of values in it are known to come back.

    Args:
        checkpoint: names and values.
        owner: whose it is, for messages.
        known: kinds of values that came back before.

    Returns:
        The bytes, and the kinds of values that are known now.

    Raises:
        RunFolderError: if `unpacked` would refuse it; the message names the entry.
    """
    try:
        data = _saved(checkpoint)
        kinds = frozenset(_kinds(checkpoint))
        if not kinds <= known:
            unpacked(data)
    except Exception as error:  # pickle and torch raise many kinds
        bad = next((f" {name} is a {type(v).__name__};" for name, v in _entries(checkpoint) if not _comes_back(v)), "")
        raise RunFolderError(
            f"a checkpoint of {owner} could not be loaded again:{bad} a controller's state_dict() must hold tensors "
            f"and plain values only ({first_line(error)})."
        ) from error
    if len(data) > DATA_LIMIT:
        raise RunFolderError(f"a checkpoint of {owner} would have {len(data):,} bytes, more than {DATA_LIMIT:,}.")
    return data, known | kinds


def unpacked(data: bytes) -> Any:
    """The checkpoint in the bytes of a file, on the CPU.

    Raises:
        Exception: of many kinds, if it is damaged, or holds anything but tensors and plain values.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
    if any(one.compress_type != zipfile.ZIP_STORED for one in members) or sum(m.file_size for m in members) > len(data):
        raise ValueError("its parts are larger than the file")
    return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")


def _saved(thing: Any) -> bytes:
    data = io.BytesIO()
    torch.save(thing, data)
    return data.getvalue()


def _comes_back(value: Any) -> bool:
    try:
        unpacked(_saved(value))
    except Exception:  # noqa: BLE001, pickle and torch raise many kinds
        return False
    return True


def _entries(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values in a checkpoint, with where they are."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _entries(one, f"{name}[{key!r}]")
    else:
        yield name, value


def _kinds(value: Any) -> Iterator[str]:
    """The kinds of values in a checkpoint: what decides whether it can be loaded."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    yield f"{kind} {value.dtype} {value.layout}" if isinstance(value, Tensor) else kind
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _kinds(key)
            yield from _kinds(one)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for one in value:
            yield from _kinds(one)
