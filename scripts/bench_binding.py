"""Does a MAGI model know which words belong together? Its loss with words changed for each other.

python scripts/bench_binding.py --model toybox-magi --cache PICTURES

PICTURES is a cache of `onereel train cache --images-only`. Of its last pictures those count whose
caption says where things are. A model that reads loses by a caption that is turned round.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable

import torch

from onereel import Magi1Pipeline
from onereel.training.captions import CaptionEncoder
from onereel.training.flow import FlowShares, corrupt
from onereel.training.latent_cache import open_caches

_SIDES = {
    "left": "right", "right": "left", "above": "below", "below": "above", "over": "under",
    "under": "over", "underneath": "above",
}  # fmt: skip
_RELATION = re.compile(r"left of|right of|above|below|over|under")
_SHAPE = re.compile(r"\b(disc|circle|ball|disk|square|box|triangle|diamond|rhombus)\b")


def turn_round(text: str) -> str:
    """Give every side its opposite."""
    return re.sub(rf"\b({'|'.join(_SIDES)})\b", lambda found: _SIDES[found[1]], text)


def change_shapes(text: str) -> str:
    """Change the first shape and the first other one for each other."""
    names = list(dict.fromkeys(_SHAPE.findall(text)))
    if len(names) < 2:
        return text
    pair = {names[0]: names[1], names[1]: names[0]}
    return _SHAPE.sub(lambda found: pair.get(found[1], found[1]), text)


@torch.no_grad()
def measure(model: str, folder: str, *, count: int, times: list[float]) -> None:
    """Print the losses, a line per flow time."""
    pipe = Magi1Pipeline.from_pretrained(model)
    dit, encode = (
        pipe.transformer.float(),
        CaptionEncoder(pipe.tokenizer, pipe.text_encoder.float()),
    )
    cache = open_caches(folder)
    asked = [
        i for i, entry in enumerate(cache.entries)
        if _RELATION.search(entry["captions"][0]) and "camera" not in entry["captions"][0]
    ][-count:]  # fmt: skip
    latent = torch.stack([cache[i].images for i in asked]).float()
    texts = [cache.entries[i]["captions"][0] for i in asked]
    changes: dict[str, Callable[[str], str]] = {
        "true": str, "sides turned round": turn_round, "shapes changed": change_shapes,
    }  # fmt: skip
    for t in times:
        losses = {}
        for name, change in changes.items():
            flow = corrupt(
                latent,
                latent,
                layout=None,
                shares=FlowShares(i2v=0.0, drop=0.0),
                generator=torch.Generator().manual_seed(0),
                device=torch.device("cpu"),
                times=torch.full((len(latent), 1), t),
            )
            text = encode([[change(caption)] for caption in texts], flow, null=dit.null_caption[:])
            losses[name] = round(float(flow.loss(flow.predict(dit, text))), 4)
        print(json.dumps({"model": model, "pictures": len(asked), "t": t, **losses}), flush=True)


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="toybox-magi")
    parser.add_argument("--cache", required=True, help="of images")
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--times", type=float, nargs="+", default=[0.1, 0.2, 0.4])
    args = parser.parse_args()
    measure(args.model, args.cache, count=args.count, times=args.times)


if __name__ == "__main__":
    main()
