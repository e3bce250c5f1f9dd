"""A model's own tokenizer and context length, from a ``.nemo`` archive or a folder, without loading the model.

A ``.nemo`` is a tar, plain or gzip, with ``model_config.yaml`` and a SentencePiece ``*.model`` whose name may carry a
hash; the members are read into memory one by one, and gigabytes of weights are passed over.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from cai.errors import PrerequisiteError
from cai.identity import parse_json

NEMO, UNPACKED = "model.nemo", "model"
CONFIG = "model_config.yaml"
_FAST, _CONFIG_HF = "tokenizer.json", "config.json"
_LARGEST = 256 * 2**20  # bytes; no tokenizer or config is larger, so whatever is larger is left where it is


class Pieces(Protocol):
    """A tokenizer: text to token ids and back. Nothing is added to the text, no BOS and no template."""

    @property
    def vocab(self) -> int:
        """How many different tokens there are."""
        ...

    @property
    def begin(self) -> int | None:
        """The id of the token that begins a text; None where there is none."""
        ...

    @property
    def end(self) -> int | None:
        """The id of the token that ends a text; None where there is none, or where the file does not say."""
        ...

    def ids(self, text: str) -> list[int]:
        """The token ids of a text."""
        ...

    def count(self, text: str) -> int:
        """How many tokens a text has."""
        ...

    def counts(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids in range(vocab). SentencePiece leaves out its control tokens (BOS, end of text)."""
        ...

    def token(self, text: str) -> int | None:
        """The id of the one token that is written ``text``; None where there is no such token."""
        ...


def open_tokenizer(model: Path) -> Pieces:
    """The tokenizer of a ``.nemo`` file, or of a folder.

    A folder is looked through for ``model.nemo``, an unpacked ``.nemo`` (``model_config.yaml``, here or in ``model/``),
    ``tokenizer.json`` (what transformers reads wherever it is) and ``tokenizer.model``, in this order.

    Raises:
        PrerequisiteError: when there is none, or it cannot be read.
    """
    if not model.exists():
        raise PrerequisiteError(f"{model}: no such file or folder, so its tokenizer cannot be read")
    if model.is_file():
        if model.suffix == ".model":
            return _sentencepiece(model.read_bytes(), str(model))
        return _fast(model) if model.suffix == ".json" else _of_archive(model)
    beside = [path for path in (model / _FAST, model / "tokenizer.model") if path.is_file()]
    if (model / NEMO).is_file():
        return _of_archive(model / NEMO, beside)
    for folder in (model, model / UNPACKED):
        if (folder / CONFIG).is_file():
            return _of_members(_folder_members(folder), folder, beside)
    if not beside:
        message = f"holds no {NEMO}, {CONFIG}, {_FAST} or tokenizer.model, so tokens cannot be counted"
        raise PrerequisiteError(f"{model}: {message}")
    return open_tokenizer(beside[0])


def context_length(model: Path) -> int | None:
    """How many tokens a model reads at once, from ``model_config.yaml`` or ``config.json``; None where neither says.

    Raises:
        PrerequisiteError: when a file cannot be read.
    """
    archive = model / NEMO if model.is_dir() else model
    unpacked = next((path for path in (model / CONFIG, model / UNPACKED / CONFIG) if path.is_file()), None)
    if archive.is_file():
        config = _config_of(archive)
    elif unpacked is not None:
        config = _yaml(unpacked.read_bytes(), unpacked)
    elif (model / _CONFIG_HF).is_file():
        try:
            config = parse_json((model / _CONFIG_HF).read_text(encoding="utf-8"))
        except ValueError as error:
            raise PrerequisiteError(f"{model / _CONFIG_HF}: is not JSON ({error})") from error
    else:
        return None
    inner = config.get("text_config")
    for where in (config, inner if isinstance(inner, dict) else {}):
        for key in ("encoder_seq_length", "max_position_embeddings"):
            value = where.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _of_archive(path: Path, beside: Sequence[Path] = ()) -> Pieces:
    with closing(_archive_members(path)) as members:
        return _of_members(members, path, beside)


def _config_of(path: Path) -> Mapping[str, Any]:
    with closing(_archive_members(path)) as members:
        for name, data in members:
            if PurePosixPath(name).name == CONFIG:
                return _yaml(data, path)
    raise PrerequisiteError(f"{path}: holds no {CONFIG}, so it is not a .nemo archive")


def _interesting(name: str, size: int) -> bool:
    return size <= _LARGEST and (PurePosixPath(name).name == CONFIG or name.endswith(".model"))


def _archive_members(path: Path) -> Generator[tuple[str, bytes]]:
    """Config and tokenizers of an archive, in its order; a plain tar is skipped through, a gzip one read through."""
    import tarfile
    import zlib

    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                if member.isfile() and _interesting(member.name, member.size):
                    file = archive.extractfile(member)
                    assert file is not None
                    yield member.name, file.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        why = f"cannot be read as a .nemo archive ({error or type(error).__name__})"
        raise PrerequisiteError(f"{path}: {why}; is the file whole?") from error


def _folder_members(folder: Path) -> Iterator[tuple[str, bytes]]:
    # The config first, as it says which of the others to read.
    for path in sorted(folder.iterdir(), key=lambda path: (path.name != CONFIG, path.name)):
        if path.is_file() and _interesting(path.name, path.stat().st_size):
            yield path.name, path.read_bytes()


def _of_members(members: Iterator[tuple[str, bytes]], where: Path, beside: Sequence[Path]) -> Pieces:
    """The tokenizer that the config names, or the only one there is, or the one beside the archive."""
    config: Mapping[str, Any] | None = None
    tokenizers: dict[str, bytes] = {}
    file_name = ""
    for name, data in members:
        if PurePosixPath(name).name == CONFIG:
            config = config or _yaml(data, where)
            file_name = _tokenizer_file_name(config)
        else:
            tokenizers[name] = data
        exact = [name for name in tokenizers if file_name and PurePosixPath(name).name == file_name]
        if exact:  # the rest of the archive, which may be gigabytes, is not read
            return _sentencepiece(tokenizers[exact[0]], f"{where}!{exact[0]}")
    hashed = [name for name in tokenizers if file_name and PurePosixPath(name).name.endswith(f"_{file_name}")]
    chosen = hashed if len(hashed) == 1 else list(tokenizers)
    if len(chosen) == 1:
        return _sentencepiece(tokenizers[chosen[0]], f"{where}!{chosen[0]}")
    if tokenizers:
        ambiguity = (
            f"`tokenizer.model` in {CONFIG} names {file_name!r}"
            if file_name
            else f"no {CONFIG} says which is the model's"
        )
        raise PrerequisiteError(f"{where}: holds several tokenizers ({', '.join(sorted(tokenizers))}) and {ambiguity}")
    if beside:
        return open_tokenizer(beside[0])
    tokenizer_type = _section(config).get("type")
    message = (
        f"its config names the tokenizer {tokenizer_type!r}, which is not in it"
        if tokenizer_type
        else "holds no tokenizer (*.model)"
    )
    raise PrerequisiteError(f"{where}: {message}; put that model's {_FAST} beside it")


def _section(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    section = (config or {}).get("tokenizer")
    return section if isinstance(section, dict) else {}


def _tokenizer_file_name(config: Mapping[str, Any] | None) -> str:
    """The file name in ``tokenizer.model: nemo:NAME``; some archives hold the path it had before packing."""
    value = _section(config).get("model")
    return PurePosixPath(value.removeprefix("nemo:")).name if isinstance(value, str) else ""


def _yaml(data: bytes, where: Path) -> Mapping[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PrerequisiteError(f"{where}: its {CONFIG} is not YAML ({error})") from error
    if not isinstance(config, dict):
        raise PrerequisiteError(f"{where}: its {CONFIG} holds no settings")
    return config


def _sentencepiece(data: bytes, where: str) -> Pieces:
    try:
        import sentencepiece
    except ImportError as error:
        raise PrerequisiteError(f"{where}: needs the package sentencepiece: pip install sentencepiece") from error
    try:
        return _SentencePiece(sentencepiece.SentencePieceProcessor(model_proto=data))
    except RuntimeError as error:
        raise PrerequisiteError(f"{where}: is not a SentencePiece model ({error})") from error


def _fast(path: Path) -> Pieces:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise PrerequisiteError(f"{path}: needs the package tokenizers: pip install tokenizers") from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception for a file that it cannot read
        raise PrerequisiteError(f"{path}: cannot be read as a tokenizer ({error})") from error
    # Padding and truncation are settings of whoever saved the file; a length is that of the text.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return _Fast(tokenizer, _special(path.parent, "bos_token"), _special(path.parent, "eos_token"))


def _special(folder: Path, which: str) -> str:
    """What transformers' ``tokenizer_config.json`` calls the token; empty where there is none."""
    path = folder / "tokenizer_config.json"
    try:
        value = parse_json(path.read_text(encoding="utf-8")).get(which) if path.is_file() else None
    except ValueError as error:
        raise PrerequisiteError(f"{path}: is not JSON ({error})") from error
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""


class _SentencePiece:
    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.vocab: int = processor.get_piece_size()
        self.begin: int | None = processor.bos_id() if processor.bos_id() >= 0 else None
        self.end: int | None = processor.eos_id() if processor.eos_id() >= 0 else None

    def ids(self, text: str) -> list[int]:
        token_ids: list[int] = self._processor.encode(text)
        return token_ids

    def count(self, text: str) -> int:
        return len(self.ids(text))

    def counts(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._processor.encode(list(texts))] if texts else []

    def text(self, ids: Sequence[int]) -> str:
        decoded: str = self._processor.decode(list(ids))
        return decoded

    def token(self, text: str) -> int | None:
        token_id: int = self._processor.piece_to_id(text)
        return token_id if self._processor.id_to_piece(token_id) == text else None


class _Fast:
    def __init__(self, tokenizer: Any, begin: str, end: str) -> None:
        self._tokenizer = tokenizer
        self.vocab: int = tokenizer.get_vocab_size()
        self.begin: int | None = self.token(begin)
        self.end: int | None = self.token(end)

    def ids(self, text: str) -> list[int]:
        token_ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return token_ids

    def count(self, text: str) -> int:
        return len(self.ids(text))

    def counts(self, texts: Sequence[str]) -> list[int]:
        return [len(e) for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def text(self, ids: Sequence[int]) -> str:
        decoded: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return decoded

    def token(self, text: str) -> int | None:
        token_id: int | None = self._tokenizer.token_to_id(text) if text else None
        return token_id
