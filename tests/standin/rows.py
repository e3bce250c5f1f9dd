"""Upstream's data files, read as upstream's datasets read them, but strictly: a key that they do not know is an error.

What upstream does in silence is done here too, counted and told in one line: rows that are too long are truncated
(SFT), replaced by others (comparisons), or replaced and masked (prompts).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from .launch import say
from .tiny import Words

_ROW = {"system", "conversations", "mask", "type", "dataset"}
_TURN = {"from", "value", "label", "canonical_form"}


@dataclass(frozen=True)
class Chat:
    """Token ids and, for each, whether the loss counts it as a target."""

    ids: list[int]
    mask: list[bool]


@dataclass(frozen=True)
class Prompt:
    """``masked``: stands in for one that was too long, so that its loss does not count."""

    ids: list[int]
    masked: bool = False


def _lines(path: str, known: set[str]) -> list[dict[str, Any]]:
    rows = []
    with open(path, encoding="utf_8") as file:
        for number, line in enumerate(file, 1):
            row = json.loads(line.strip())
            if unknown := set(row) - known:
                raise KeyError(f"{path}:{number}: unknown keys {sorted(unknown)}")
            rows.append(row)
    return rows


def chat_rows(cfg: DictConfig, tokens: DictConfig, words: Words, name: str) -> list[Chat]:
    """SFT conversations of ``cfg.file_path``, truncated to ``cfg.max_seq_length``."""
    index = Path(cfg.index_mapping_dir or Path(cfg.file_path).parent)
    index.mkdir(parents=True, exist_ok=True)
    rows = [_chat(row, tokens, words) for row in _lines(cfg.file_path, _ROW)]
    # Upstream's memory map leaves its index beside the data.
    (index / f"{Path(cfg.file_path).name}.idx.info").write_text(json.dumps({"rows": len(rows)}))
    limit = cfg.max_seq_length
    # Inputs are all but the last token, so one more than the limit still fits.
    long = [row for row in rows if len(row.ids) > limit + 1]
    kept = [Chat(row.ids[: limit + 1], row.mask[: limit + 1]) for row in rows]
    empty = sum(not any(row.mask[1:]) for row in kept)
    say(f"data {name}: {len(rows)} rows, {len(long)} too long and truncated, {empty} without a target")
    return kept


def _chat(row: dict[str, Any], tokens: DictConfig, words: Words) -> Chat:
    kind = row.get("type")
    assert kind in (None, "VALUE_TO_TEXT"), f"source type {kind} not supported by the stand-in"
    masked, end_name, end_turn = row.get("mask", "User"), tokens.end_of_name, tokens.end_of_turn
    header = f"{tokens.system_turn_start}System{end_name}{row['system']}{end_turn}"
    turns, text = [], header
    for turn in row["conversations"]:
        if unknown := set(turn) - _TURN:
            raise KeyError(f"unknown keys {sorted(unknown)} in a turn")
        label = ""
        if kind is not None and turn.get("label") is not None:
            assert isinstance(turn["label"], str), f"Unknown label type {type(turn['label'])}"
            label = tokens.label_start + turn["label"] + end_name
        begin = tokens.turn_start + turn["from"] + end_name + label
        turns.append((turn["from"], begin, begin + turn["value"] + end_turn))
        text += turns[-1][2]
    if turns[-1][0] != masked:
        text += tokens.turn_start
    ids = words.encode(text)
    start = words.encode(header)
    assert ids[: len(start)] == start, "the header's tokens are not the conversation's first"
    assert masked in [speaker for speaker, _, _ in turns], "mask role not in the conversation"

    def inside(part: str) -> list[int]:
        return words.encode("\0" + part)[len(words.encode("\0")) :]

    mask = [False] * len(start)
    turn_start = len(inside(tokens.turn_start))
    for number, (speaker, begin, turn) in enumerate(turns):
        length = len(inside(turn))
        if speaker == masked and number > 1:
            # The start of a masked turn is the end signal of the answer before it.
            mask += [True] * turn_start + [False] * (length - turn_start)
        elif number == 0 or speaker == masked:
            mask += [False] * length
        else:
            skip = len(inside(begin))
            mask += [False] * skip + [True] * (length - skip)
    mask = (mask + [True] * len(ids))[: len(ids)]
    assert any(mask), "mask is empty"
    return Chat(ids, mask)


def _prefix(data: DictConfig, split: str) -> str:
    prefix = data.data_prefix
    assert isinstance(prefix, DictConfig), "stand-in: data_prefix must be a dictionary of train, validation and test"
    assert all(prefix.get(key) is not None for key in ("train", "validation", "test")), (
        f"Data prefix dictionary should have train, test and validation keys, has {list(prefix)}"
    )
    # A string would be taken apart letter by letter upstream.
    assert isinstance(prefix[split], ListConfig), f"data_prefix.{split} must be a list of paths"
    assert len(prefix[split]) == 1, "stand-in: one file a split"
    assert data.data_impl.startswith("json"), f"data.data_impl must be jsonl here, but got {data.data_impl}"
    return str(prefix[split][0])


def _texts(path: str, words: Words) -> list[list[int]]:
    return [words.encode(row["text"]) for row in _lines(path, {"text"})]


class Pairs:
    """Comparisons: lines 2n and 2n + 1 are the chosen and the rejected text of pair n."""

    def __init__(self, model: DictConfig, words: Words, split: str) -> None:
        path = _prefix(model.data, split)
        texts = _texts(path, words)
        if len(texts) % 2:
            raise ValueError(f"{path}: {len(texts)} lines do not alternate chosen and rejected")
        self._pairs = list(zip(texts[::2], texts[1::2], strict=True))
        self._limit = model.data.seq_length
        self._order = list(range(len(self._pairs)))
        random.Random(model.seed).shuffle(self._order)
        self.long = sum(not self._fits(pair) for pair in self._pairs)
        equal = sum(a == b for a, b in self._pairs)
        say(f"data {split}: {len(self._pairs)} pairs, {self.long} too long and replaced, {equal} with equal sides")

    def __len__(self) -> int:
        return len(self._pairs)

    def _fits(self, pair: Sequence[list[int]]) -> bool:
        return max(map(len, pair)) <= self._limit

    def __getitem__(self, index: int) -> tuple[list[int], list[int]]:
        # Past the end this is an IndexError, as upstream.
        while not self._fits(pair := self._pairs[self._order[index]]):
            index += 2
        return pair


class Prompts:
    """Prompts of PPO; at most ``seq_length - max_length`` tokens."""

    def __init__(self, model: DictConfig, words: Words, split: str) -> None:
        self._texts = _texts(_prefix(model.data, split), words)
        limit = model.data.seq_length - model.ppo.length_params.max_length
        assert limit > 0, f"max sample length must be greater than 0, but got {limit}"
        self._fits: Callable[[list[int]], bool] = lambda ids: len(ids) <= limit
        self._limit = limit
        self._order = list(range(len(self._texts)))
        random.Random(model.seed).shuffle(self._order)
        self.long = sum(not self._fits(ids) for ids in self._texts)
        say(f"data {split}: {len(self._texts)} prompts, {self.long} too long, replaced and masked")

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> Prompt:
        for step in range(len(self)):
            ids = self._texts[self._order[(index + step) % len(self)]]
            if self._fits(ids):
                return Prompt(ids, masked=step > 0)
        raise RuntimeError(f"All samples have length > {self._limit}")
