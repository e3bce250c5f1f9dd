"""Data files of shapes that keep a reader busy: each is read at 20 MB/s or more, or refused at once.

    python -m benchmarks.odd_data [--megabytes 24] [--only NAME]

A megabyte is one of the file; of gzipped files, of what comes out. Honest files come first, for comparison: their speed
is that of the rows and turns made of them, and the aim is for odd shapes. Refused within 1.5 s is refused at once.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.data.readers import READERS
from cai.errors import PrerequisiteError

AIM = 20.0
"""MB/s of processor time."""

AT_ONCE = 1.5
"""Seconds of processor time."""

TRIES = 3
"""How often a shape is read that does not reach the aim; the best counts."""

Bytes = Callable[[int], Iterator[bytes]]


@dataclass(frozen=True)
class Shape:
    """A file: its bytes for a size, and how it is read."""

    name: str
    data: Bytes
    reader: str = "jsonl"
    makes: str = "prompts"
    packed: bool = False
    honest: bool = False


def lines(make: Callable[[int], str]) -> Bytes:
    """Lines, each made of its number."""

    def data(size: int) -> Iterator[bytes]:
        number = 0
        while size > 0:
            line = (make(number) + "\n").encode("utf-8", "surrogatepass")
            size -= len(line)
            number += 1
            yield line

    return data


def one(opening: str, repeated: str, closing: str) -> Bytes:
    """One value: an opening, something over and over, and a closing."""

    def data(size: int) -> Iterator[bytes]:
        yield opening.encode()
        block = repeated.encode() * max(1, 2**16 // len(repeated.encode()))
        while size > 0:
            size -= len(block)
            yield block
        yield closing.encode()

    return data


def nested(depth: int) -> str:
    """A list in a list and so on."""
    return "[" * depth + "]" * depth


def prompt(number: int) -> str:
    """An ordinary row."""
    return json.dumps({"prompt": f"Question {number}: " + "what do bees do in winter? " * 12})


def chat(number: int) -> str:
    """A transcript of four turns."""
    turns = f"\n\nHuman: Question {number}?\n\nAssistant: Yes. {'Bees keep warm. ' * 12}\n\nHuman: Why?\n\nAssistant: "
    return json.dumps({"chosen": f"{turns}To live.", "rejected": f"{turns}No."})


def turns(number: int) -> str:
    """A transcript of turns of one letter."""
    return json.dumps({"chosen": "\n\nHuman: a\n\nAssistant: b" * 200 + str(number), "rejected": "\n\nHuman: a"})


def table(columns: Callable[[int], dict[str, Any]]) -> Bytes:
    """A Parquet file of columns for a size."""

    def data(size: int) -> Iterator[bytes]:
        import pyarrow
        import pyarrow.parquet

        file = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(columns(size)), file)
        yield file.getvalue()

    return data


def lists(kind: str, per_byte: int) -> Callable[[int], dict[str, Any]]:
    """One row, whose list has ``per_byte`` values a byte, all alike."""

    def columns(size: int) -> dict[str, Any]:
        import pyarrow

        values = pyarrow.nulls(size * per_byte, getattr(pyarrow, kind)())
        offsets = pyarrow.array([0, size * per_byte], pyarrow.int64())
        return {"prompt": ["a"], "more": pyarrow.LargeListArray.from_arrays(offsets, values)}

    return columns


def texts(size: int) -> dict[str, Any]:
    """Ordinary rows."""
    return {"prompt": [json.loads(prompt(number))["prompt"] for number in range(size // 340)]}


SHAPES = (
    Shape("rows", lines(prompt), honest=True),
    Shape("rows, packed", lines(prompt), packed=True, honest=True),
    Shape("rows of one array", one("[" + prompt(0), "," + prompt(1), "]"), honest=True),
    Shape("transcripts", lines(chat), "hh_rlhf", "comparisons", honest=True),
    Shape("transcripts of one-letter turns", lines(turns), "hh_rlhf", "comparisons", honest=True),
    Shape("table", table(texts), "parquet", honest=True),
    Shape("one row of numbers that are none", table(lists("int8", 1)), "parquet"),
    Shape("one row of truths that are none", table(lists("bool_", 8)), "parquet"),
    Shape("nested 500 deep, in rows", lines(lambda n: f'{{"prompt": "p{n}", "more": {nested(500)}}}')),
    Shape("nested 900 deep, in the prompt", lines(lambda n: f'{{"prompt": {nested(900)}}}')),
    Shape("nested deeper than can be read", lines(lambda n: nested(50_000))),
    Shape("nested without end", one("", "[", "")),
    Shape("nested objects without end", one("", '{"a":', "")),
    Shape("nested without end, in an array", one("[", "[", "")),
    Shape("nested without end, in an element", one('[{"prompt": "a"}, ', '{"a":', "")),
    Shape("one line that is no JSON", one("", "x", "\n")),
    Shape("one row of one text", one('{"prompt": "', "word ", '"}\n')),
    Shape("one row of one text, unclosed", one('{"prompt": "', "word ", "\n")),
    Shape("one element of one text", one('[{"prompt": "', "word ", '"}]')),
    Shape("one element, unclosed", one('[{"prompt": "', "word ", "")),
    Shape("one text of escapes", one('{"prompt": "', "\\u0041\\n", '"}\n')),
    Shape("one text of quotes", one('[{"prompt": "', '\\"', '"}]')),
    Shape("one text of backslashes, unclosed", one('["', "\\\\", "")),
    Shape("one row of a million turns", one('{"messages": [', '{"role": "user", "content": "a"},', "{}]}\n")),
    Shape("one row of a million fields", one('{"prompt": "a", "x": [', '{"a": 1},', "0]}\n")),
    Shape("one long number", one('{"prompt": ', "1", "}\n")),
    Shape("one long number with a point", one('{"prompt": 1.', "1", "}\n")),
    Shape("long numbers in rows", lines(lambda n: f'{{"prompt": "p{n}", "n": [{",".join(["1" * 4000] * 20)}]}}')),
    Shape("white space", one("", " ", "")),
    Shape("white space in an array", one("[", " \n", "]")),
    Shape("empty lines", one("", "\n", "")),
    Shape("numbers, one a line", one("", "1\n", "")),
    Shape("empty objects, one a line", one("", "{}\n", "")),
    Shape("numbers in an array", one("[1", ",1", "]")),
    Shape("empty objects in an array", one("[{}", ",{}", "]")),
    Shape("broken objects in an array", one("[{}", ',{"a":}', "]")),
    Shape("broken lines", one("", '{"a":}\n', "")),
    Shape("zeros", one("", "\0", "")),
    Shape("lines of zeros", one("", "\0" * 99 + "\n", "")),
    Shape("marks of byte order", one("", "\ufeff", "")),
    Shape("carriage returns", one("", "\r", "")),
    Shape("one transcript without end", one('{"chosen": "', "\\n\\nHuman: a", '"}\n'), "hh_rlhf", "conversations"),
    Shape("red team without end", one("[", '{"transcript": "a", "tags": []},', "{}]"), "hh_red_team", "prompts"),
    Shape("zeros, packed", one("", "\0", ""), packed=True),
    Shape("empty objects in an array, packed", one("[{}", ",{}", "]"), packed=True),
)


def measure(shape: Shape, folder: Path, size: int) -> tuple[float, float, int, str]:
    """Seconds of processor time, MB/s, rows, and what it came to in words."""
    path = folder / "file"
    length = 0
    with gzip.open(path, "wb", 6) if shape.packed else path.open("wb") as file:
        for block in shape.data(size):
            length += len(block)
            file.write(block)
    tally: Counter[str] = Counter()
    rows = 0
    start = time.process_time()
    try:
        for _ in READERS[shape.reader].rows([path], shape.makes, {}, tally):
            rows += 1
        words = ", ".join(f"{reason} {count:,}" for reason, count in tally.most_common(2))
    except PrerequisiteError as error:
        words = f"refused: {str(error).partition(': ')[2][:60]}"
    seconds = time.process_time() - start
    return seconds, length / 2**20 / seconds, rows, words


def reached(measured: tuple[float, float, int, str]) -> bool:
    """Whether a file was read quickly, or refused at once, which is as good."""
    seconds, rate, _, words = measured
    return rate >= AIM or (words.startswith("refused") and seconds < AT_ONCE)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=24)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    slow = []
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        for shape in SHAPES:
            if args.only not in shape.name:
                continue
            size = args.megabytes * 2**20
            best = measure(shape, Path(folder), size)
            for _ in range(TRIES - 1):  # a machine does other things now and then
                if shape.honest or reached(best):
                    break
                best = min(best, measure(shape, Path(folder), size))
            seconds, rate, rows, words = best
            print(f"{shape.name:38} {seconds:6.2f} s {rate:8.1f} MB/s {rows:9,} rows   {words}", flush=True)
            if not (shape.honest or reached(best)):
                slow.append(shape.name)
            rates[shape.name] = round(rate, 1)
    odd = [shape.name for shape in SHAPES if not shape.honest and shape.name in rates]
    slowest = min(odd or rates, key=lambda name: rates[name])
    print(
        json.dumps({"benchmark": "odd_data", "at_least": AIM, "slowest": slowest, "mb_s": rates[slowest], "slow": slow})
    )
    sys.exit(int(bool(slow)))


if __name__ == "__main__":
    main()
