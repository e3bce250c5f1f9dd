"""Files of data sets that are published on GitHub, at a commit; kept under the program's home, so fetched once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from urllib.parse import quote

from cai.data.locate import HubFile
from cai.errors import PrerequisiteError
from cai.files.home import cai_home

RAW = "https://raw.githubusercontent.com"
MOST_BYTES = 256 << 20
"""Of one file; the safety sets have less than a hundredth of it."""
_TIMEOUT = 60.0


def github_file(remote: HubFile) -> Path:
    """The file on this disk, fetched where it is not there yet.

    Raises:
        PrerequisiteError: when it can be neither found nor fetched.
    """
    path = cai_home() / "downloads" / "github" / remote.name / remote.revision / remote.file
    if not path.is_file():
        try:
            _fetch(f"{RAW}/{quote(f'{remote.name}/{remote.revision}/{remote.file}')}", path)
        except OSError as error:
            raise PrerequisiteError(f"{remote.path}: cannot be kept in {path.parent} ({error})") from error
    return path


def _fetch(url: str, path: Path) -> None:
    import httpx  # late: planning fetches nothing

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    try:
        with os.fdopen(handle, "wb") as file, httpx.stream("GET", url, timeout=_TIMEOUT) as response:
            response.raise_for_status()
            for block in response.iter_bytes():
                if file.tell() + len(block) > MOST_BYTES:
                    raise PrerequisiteError(
                        f"{url}: is larger than {MOST_BYTES:,} bytes; download it and give its path"
                    )
                file.write(block)
        # Rename last: what has the name is whole.
        os.replace(part, path)
    except httpx.HTTPError as error:
        raise PrerequisiteError(
            f"{url}: cannot be fetched ({error}); download it where there is a network and give its path instead"
        ) from error
    finally:
        Path(part).unlink(missing_ok=True)
