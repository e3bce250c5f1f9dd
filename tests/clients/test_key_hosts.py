"""A key goes only to servers that the user allowed for it, whatever an experiment says."""

from __future__ import annotations

import contextlib
import json
import stat

import pytest

from cai.cli import main
from cai.clients.key_hosts import KNOWN, check_key_hosts, settings_file
from cai.clients.openai_api import open_endpoint
from cai.errors import PrerequisiteError, SpecError

KEY = "sk-secret-value-of-the-user"


@pytest.fixture(autouse=True)
def own_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("CAI_KEY_HOSTS", raising=False)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def allowed(variable, *urls):
    with contextlib.suppress(PrerequisiteError):
        check_key_hosts(variable, urls)
        return True
    return False


def test_a_known_service_gets_its_own_key_and_no_other():
    assert allowed("OPENAI_API_KEY", "https://api.openai.com/v1")
    assert allowed("OPENAI_API_KEY", "https://API.OpenAI.com:443/v1")
    assert not allowed("OPENAI_API_KEY", "https://api.anthropic.com/v1")
    assert not allowed("AWS_SECRET_ACCESS_KEY", "https://api.openai.com/v1")
    assert all(host == host.lower() and "*" not in host for hosts in KNOWN.values() for host in hosts)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.openai.com/v1",
        "https://api.openai.com.evil.example/v1",
        "https://evil.example/api.openai.com/v1",
        "https://xapi.openai.com/v1",
        "https://api.openai.com\\.evil.example/v1",
        "https://api.openai.com%2eevil.example/v1",
        "https://api。openai。com.evil.example/v1",
        "http://127.0.0.1:9/v1",
        "https://[::1]/v1",
    ],
)
def test_what_only_looks_like_it_does_not(url):
    assert not allowed("OPENAI_API_KEY", url)


def test_every_replica_counts():
    urls = ("https://api.openai.com/v1", "https://evil.example/v1")
    with pytest.raises(PrerequisiteError) as caught:
        check_key_hosts("OPENAI_API_KEY", urls)
    assert KEY not in str(caught.value)
    assert str(caught.value) == (
        "OPENAI_API_KEY would be sent to evil.example, which is not allowed for it; if you trust that server with this "
        "key: python -m cai allow OPENAI_API_KEY evil.example"
    )


@pytest.mark.parametrize(
    ("entry", "yes", "no"),
    [
        ("judge.lan", ["https://judge.lan/v1", "https://judge.lan:8443/v1"], ["http://judge.lan/v1"]),
        ("judge.lan:8443", ["https://judge.lan:8443/v1"], ["https://judge.lan/v1", "https://judge.lan:84/v1"]),
        ("http://judge.lan:8000", ["http://judge.lan:8000/v1", "https://judge.lan:8000"], ["http://judge.lan:80/v1"]),
        ("*.openai.azure.com", ["https://mine.openai.azure.com/v1"], ["https://openai.azure.com/v1"]),
        ("https://Judge.LAN/v1/", ["https://judge.lan/v1"], ["https://a.judge.lan/v1"]),
        ("127.0.0.1", ["http://127.0.0.1:8000/v1"], ["http://127.0.0.2:8000/v1", "http://localhost:8000/v1"]),
        ("[::1]:8000", ["http://[::1]:8000/v1"], ["http://[::1]:8001/v1"]),
    ],
)
@pytest.mark.parametrize("by", ["command", "variable"])
def test_the_user_allows_a_server(entry, yes, no, by, monkeypatch, capsys):
    if by == "command":
        assert main(["allow", "JUDGE_KEY", entry]) == 0
        assert str(settings_file()) in capsys.readouterr().out
        assert main(["allow", "JUDGE_KEY", entry]) == 0
        assert settings_file().read_text().count("- ") == 1
    else:
        monkeypatch.setenv("CAI_KEY_HOSTS", f"OTHER=x.example, JUDGE_KEY={entry}")
    assert [allowed("JUDGE_KEY", url) for url in yes] == [True] * len(yes)
    assert [allowed("JUDGE_KEY", url) for url in no] == [False] * len(no)
    assert not any(allowed("OPENAI_API_KEY", url) for url in yes)


def test_what_is_offered_is_enough():
    for url in (
        "http://node7:8000/v1",
        "https://judge.lan:8443/v1",
        "http://[fd00::2]:8000/v1",
        "http://127.0.0.1:8000",
    ):
        with pytest.raises(PrerequisiteError) as caught:
            check_key_hosts("JUDGE_KEY", [url])
        *_, variable, host = str(caught.value).split()
        assert main(["allow", variable, host]) == 0
        check_key_hosts("JUDGE_KEY", [url])


@pytest.mark.parametrize(
    "words",
    [
        ("judge_key", "a.lan"),
        ("JUDGE_KEY", "a b"),
        ("JUDGE_KEY", "*"),
        ("JUDGE_KEY", "*.*"),
        ("JUDGE_KEY", "ftp://a.lan"),
    ],
)
def test_what_cannot_be_allowed(words, capsys):
    assert main(["allow", *words]) == 2
    assert not settings_file().exists()


@pytest.mark.parametrize("text", ["- a", "JUDGE_KEY: a.lan", "JUDGE_KEY: [3]", "JUDGE_KEY: ['a b']", "{", "3"])
def test_a_broken_file_of_the_user_is_told(text):
    settings_file().parent.mkdir(parents=True)
    settings_file().write_text(text)
    with pytest.raises(SpecError, match="key_hosts"):
        check_key_hosts("JUDGE_KEY", ["https://a.lan"])


def test_no_request_is_made_with_a_key_that_may_not_go_there(tmp_path):
    endpoint = {"model": "m", "url": "http://127.0.0.1:9/v1", "api_key_env": "JUDGE_KEY"}
    (tmp_path / "endpoint.json").write_text(json.dumps(endpoint))
    with pytest.raises(PrerequisiteError, match=r"JUDGE_KEY would be sent to 127.0.0.1:9, which"):
        open_endpoint(tmp_path / "endpoint.json")
    assert main(["allow", "JUDGE_KEY", "127.0.0.1:9"]) == 0
    open_endpoint(tmp_path / "endpoint.json").close()
    with pytest.raises(PrerequisiteError, match="evil"):
        open_endpoint(tmp_path / "endpoint.json", replicas=("https://evil.example/v1",))
    assert stat.S_IMODE(settings_file().stat().st_mode) & 0o022 == 0


def test_a_name_in_other_letters_is_offered_and_allowed_as_it_travels():
    url = "https://bücher.example/v1"
    with pytest.raises(PrerequisiteError, match=r"would be sent to xn--bcher-kva\.example, which") as caught:
        check_key_hosts("JUDGE_KEY", [url])
    assert main(["allow", "JUDGE_KEY", str(caught.value).split()[-1]]) == 0
    check_key_hosts("JUDGE_KEY", [url])
