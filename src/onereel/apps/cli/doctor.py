"""`onereel doctor`: what this machine has, what is missing, what to install."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from onereel import __version__
from onereel.core.errors import BackendUnavailable

# Import name: (distribution, what it is for, how to get it). Extras as in pyproject.toml, then
# attention backends that are used when they are found.
OPTIONAL_PACKAGES = {
    "torchao": ("torchao", "8- and 4-bit weights", "pip install 'onereel[quant]'"),
    "tensorboard": ("tensorboard", "training curves", "pip install 'onereel[train]'"),
    "scipy": ("scipy", "tracking in evaluations", "pip install 'onereel[eval]'"),
    "fastapi": ("fastapi", "the HTTP server", "pip install 'onereel[serve]'"),
    "uvicorn": ("uvicorn", "the HTTP server", "pip install 'onereel[serve]'"),
    "ray": ("ray", "fleets of jobs", "pip install 'onereel[ray]'"),
    "flash_attn": ("flash-attn", "faster attention on NVIDIA GPUs", "pip install flash-attn"),
    "sageattention": (
        "sageattention",
        "faster 8-bit attention on NVIDIA GPUs",
        "pip install sageattention",
    ),
}
_CORE_PACKAGES = (
    *("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors"),
    *("sentencepiece", "tokenizers", "einops", "av", "pillow", "numpy", "ftfy", "pyyaml"),
    *("beautifulsoup4", "typer", "rich"),
)
_ENCODERS = ("libx264", "libx265", "libsvtav1", "libvpx-vp9", "mpeg4", "h264_nvenc")
_GIB = 2**30

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def doctor(
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what this machine has, what is missing and what to install."""
    machine = examine()
    if json_:
        print(json.dumps(machine, indent=2))
    else:
        for line in describe(machine):
            print(line)
    if machine["problems"]:
        raise BackendUnavailable(
            f"{len(machine['problems'])} problem(s) found", hint=machine["problems"][0]["fix"]
        )


def examine() -> dict[str, Any]:
    """Look at the machine.

    Returns:
        Plain data: versions, devices, memory and disk in GiB, encoders, packages, problems (what
        keeps onereel from working) and their fixes.
    """
    packages = {name: _version(name) for name in _CORE_PACKAGES}
    missing = [name for name, version in packages.items() if version is None]
    problems = [
        {"what": f"{name} is not installed", "fix": f"pip install {name}"} for name in missing
    ]
    media = {} if "av" in missing else _media()
    if media and not media["encoders"]["libx264"]:
        problems.append(
            {"what": "PyAV has no H.264 encoder", "fix": "pip install --force-reinstall av"}
        )
    return {
        "onereel": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "packages": packages,
        "optional": {
            name: {"version": _version(distribution), "for": purpose, "install": install}
            for name, (distribution, purpose, install) in OPTIONAL_PACKAGES.items()
        },
        "devices": [] if "torch" in missing else _devices(),
        "cpu": _cpu(torch_present="torch" not in missing),
        "memory_gib": memory_gib(),
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / _GIB, 1),
        "media": media,
        "checkpoints": _shipped_checkpoints(),
        "problems": problems,
    }


def describe(machine: dict[str, Any]) -> list[str]:
    """Put what `examine` found into lines.

    Args:
        machine: its result.

    Returns:
        Lines of text, readable without colour.
    """
    cpu, memory, media = machine["cpu"], machine["memory_gib"], machine["media"]
    found = ", ".join(name for name, there in media.get("encoders", {}).items() if there)
    rows = [
        ("onereel", machine["onereel"]),
        ("python", f"{machine['python']}  {machine['executable']}"),
        ("platform", machine["platform"]),
        ("cpu", f"{cpu['usable']} of {cpu['present']} cores, {cpu['torch_threads']} torch threads"),
        ("memory", f"{memory['total']} GiB, {memory['available']} GiB available"),
        ("disk", f"{machine['disk_free_gib']} GiB free in {Path.cwd()}"),
        *(("device", _device_line(device)) for device in machine["devices"]),
        *((name, version or "MISSING") for name, version in machine["packages"].items()),
        ("encoders", found or "none"),
        ("checkpoints", ", ".join(machine["checkpoints"]) or "none shipped"),
    ]
    lines = [f"{name:16} {value}" for name, value in rows]
    lines.append("optional packages:")
    for name, entry in machine["optional"].items():
        state = entry["version"] or f"not installed: {entry['install']}"
        lines.append(f"  {name:14} {state}  ({entry['for']})")
    lines += [f"problem: {entry['what']}" for entry in machine["problems"]]
    if not machine["problems"]:
        lines.append("nothing is missing that `onereel generate` needs")
    return lines


def memory_gib() -> dict[str, float | None]:
    """Read how much memory there is for this process.

    Returns:
        `total` and `available` in GiB; a container's limit counts as the total, and what the
        system does not tell is None.
    """
    names = os.sysconf_names
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page if "SC_PHYS_PAGES" in names else None
    free = os.sysconf("SC_AVPHYS_PAGES") * page if "SC_AVPHYS_PAGES" in names else None
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        # "Available" counts the page cache as free, as the kernel does when memory gets tight.
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    if total is not None and limit.is_file() and (text := limit.read_text().strip()) != "max":
        total = min(total, int(text))
        used = Path("/sys/fs/cgroup/memory.current")
        if free is not None and used.is_file():
            free = min(free, max(total - int(used.read_text()), 0))
    return {
        "total": None if total is None else round(total / _GIB, 1),
        "available": None if free is None else round(free / _GIB, 1),
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu(*, torch_present: bool) -> dict[str, int | None]:
    present = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else present
    if not torch_present:
        return {"present": present, "usable": usable, "torch_threads": None}
    import torch

    return {"present": present, "usable": usable, "torch_threads": torch.get_num_threads()}


def _devices() -> list[dict[str, Any]]:
    import torch

    devices: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        memory = round(facts.total_memory / _GIB, 1)
        devices.append({"name": f"cuda:{index}", "model": facts.name, "memory_gib": memory})
    if torch.backends.mps.is_available():
        devices.append({"name": "mps", "model": platform.processor(), "memory_gib": None})
    devices.append({"name": "cpu", "model": platform.machine(), "memory_gib": None})
    return devices


def _device_line(device: dict[str, Any]) -> str:
    memory = f", {device['memory_gib']} GiB" if device["memory_gib"] else ""
    return f"{device['name']}  {device['model']}{memory}"


def _media() -> dict[str, Any]:
    import av

    def has_encoder(name: str) -> bool:
        try:
            return av.codec.Codec(name, "w").is_encoder
        except av.codec.codec.UnknownCodecError:
            return False

    libraries = {name: ".".join(map(str, version)) for name, version in av.library_versions.items()}
    return {"encoders": {name: has_encoder(name) for name in _ENCODERS}, "ffmpeg": libraries}


def _shipped_checkpoints() -> list[str]:
    folder = Path(__file__).parents[2] / "world" / "checkpoints"
    return sorted(path.name for path in folder.glob("*") if path.is_dir())
