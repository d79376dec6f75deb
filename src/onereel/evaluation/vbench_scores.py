"""Scores of VBench kept on disk, so that a stopped evaluation can go on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onereel.core.errors import MediaError
from onereel.evaluation.vbench.evaluate import VideoScore
from onereel.evaluation.videos import hash_input


class ScoreLog:
    """One line of JSON per score, with the hash of the video and of what scored it.

    Args:
        path: the file; created when missing.
        networks: descriptions of the networks; scores of others are not taken again.

    Raises:
        MediaError: the file is no such log.
    """

    def __init__(self, path: str | Path, *, networks: dict[str, str]) -> None:
        self.path, self._networks = Path(path), networks
        self._hashes: dict[str, str] = {}
        self._lines = self._read()

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines()
        found = []
        for number, line in enumerate(lines, start=1):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError as error:
                if number == len(lines):  # the last line of a run that was killed
                    continue
                raise MediaError(f"{self.path}: line {number}", expected="JSON",
                                 got=error) from error  # fmt: skip
        return found

    def known(self, paths: Iterable[Path]) -> list[VideoScore]:
        """Give the stored scores of videos that have not changed.

        Args:
            paths: of the videos.

        Returns:
            Scores by the same networks of the same bytes.

        Raises:
            MediaError: a line is no score.
        """
        wanted = {str(path) for path in paths}
        scores = []
        for line in self._lines:
            score = VideoScore.from_json(line["score"])
            same = line["networks"] == self._networks and score.path in wanted
            if same and line["sha256"] == self._hash(score.path):
                scores.append(score)
        return scores

    def add(self, score: VideoScore) -> None:
        """Append a score.

        Args:
            score: of one video.
        """
        line = {
            "score": dataclasses.asdict(score),
            "sha256": self._hash(score.path),
            "networks": self._networks,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _hash(self, path: str) -> str:
        if path not in self._hashes:
            self._hashes[path] = hash_input(path) if Path(path).exists() else ""
        return self._hashes[path]
