"""Accounting for a Magic 1-For-1 checkpoint, in the terms of `verify.py`."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable

import torch

from onereel.core.errors import CheckpointError, OneReelError
from onereel.runtime.magic_source import (
    NETWORKS,
    MagicFiles,
    check_parts,
    hash_files,
    magic_files,
)
from onereel.runtime.source import ModelSource
from onereel.runtime.verify import PartReport, VerifyReport


def verify_magic(source: ModelSource, *, deep: bool = False, hashed: bool = True) -> VerifyReport:
    """Check a checkpoint, list what is wrong, and hash its weights.

    Args:
        source: a folder of this family.
        deep: read all values and look for NaN and infinity.
        hashed: hash the weights, where nothing is wrong.

    Returns:
        What was found.
    """
    problems: list[str] = []

    def tried(check: Callable[[], object]) -> bool:
        try:
            check()
        except OneReelError as error:
            problems.append(str(error))
            return False
        return True

    parts: dict[str, PartReport] = {}
    sampling: dict[str, object] = {}
    if tried(lambda: magic_files(source)):
        files = magic_files(source)
        sampling = dict(files.sampling)
        for part in NETWORKS:
            tried(functools.partial(_add_report, parts, files, part))
        if not problems:
            tried(lambda: check_parts(files))
        if deep and not problems:
            tried(lambda: _refuse_non_finite(files))
    return VerifyReport(
        name=source.name,
        path=str(source.path),
        kind=source.kind,
        parts=parts,
        sampling=sampling,
        special_tokens=None,
        problems=tuple(problems),
        model_hash=hash_files(magic_files(source)) if hashed and not problems else None,
    )


def _add_report(parts: dict[str, PartReport], files: MagicFiles, part: str) -> None:
    found = files.tensors(part)
    if found is None:
        raise CheckpointError(f"{files.places[part]}: no safetensors", hint="save it again")
    kinds = collections.Counter(str(i.dtype).removeprefix("torch.") for i in found.infos.values())
    parts[part] = PartReport(
        path=str(found.path),
        num_files=len(found.files),
        num_tensors=len(found.infos),
        num_parameters=found.num_parameters,
        num_bytes=found.num_bytes,
        dtypes=dict(kinds),
    )


def _refuse_non_finite(files: MagicFiles) -> None:
    bad = []
    for part in NETWORKS:
        found = files.tensors(part)
        for name, tensor in () if found is None else found.tensors():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
                bad.append(f"{part}: {name}")
    if bad:
        shown = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
        raise CheckpointError(
            f"{len(bad)} tensors hold NaN or infinity ({shown})", hint="download them again"
        )
