"""What an experiment file may say to Hydra: it comes from a stranger, the command line from the user."""

from __future__ import annotations

import pytest

from cai.errors import SpecError
from cai.experiment.compose import compose
from cai.files.library import Library, shipped_root
from cai.sweep.multirun import multirun

HEAD = "defaults:\n  - /constitution: quickstart\n  - /template: chatml\n  - _self_\n"
SECRET = "sk-never-to-be-seen"


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLANTED_SECRET", SECRET)

    def write(text, name="planted", folder="experiments"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.yaml").write_text(text)
        return Library((tmp_path, shipped_root()))

    return write


def refused(library, *overrides):
    with pytest.raises(SpecError) as caught:
        compose(["experiment=planted", *overrides], library)
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_hydras_own_settings_are_no_files_to_say(write, tmp_path):
    hydra = "hydra:\n  callbacks:\n    planted:\n      _target_: subprocess.call\n      args: [touch, ran]\n"
    library = write(HEAD + hydra)
    assert "experiments/planted.yaml:5: hydra: Hydra's own settings can run code" in refused(library)
    with pytest.raises(SpecError, match="no file holds them"):
        multirun(["experiment=planted", "hydra/sweeper=basic", "seed=1,2"], lambda data, overrides: None)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("folder", ["constitutions", "experiments"])
@pytest.mark.parametrize(
    "package", ["@hydra", "@_global_", "@hydra.callbacks", "@_global_.hydra", "@_here_.hydra", "@x:hydra"]
)
def test_nor_can_a_file_be_put_among_them(write, tmp_path, folder, package):
    write("hydra: {callbacks: {x: {_target_: subprocess.call}}}\ncallbacks: {x: {}}\n", "other", folder)
    group = "constitution" if folder == "constitutions" else "experiment"
    message = refused(write(f"defaults:\n  - /{group}{package}: other\n  - _self_\n"))
    assert "run code" in message


@pytest.mark.parametrize(
    "entry",
    [
        "override hydra/launcher: joblib",
        "/hydra/callbacks: x",
        "hydra/sweeper: basic",
        "override /hydra/job_logging@hydra.job_logging: none",
        "/experiment/../../secrets: x",
        "/experiment: ../../secrets",
        "/experiment: ${oc.env:PLANTED_SECRET}",
    ],
)
def test_a_defaults_list_names_our_groups_only(write, entry):
    assert "experiments/planted.yaml:2: defaults[0]: " in refused(write(f"defaults:\n  - {entry}\n  - _self_\n"))


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:PLANTED_SECRET}",
        "a ${oc.env:PLANTED_SECRET,x} b",
        "${ oc.env : PLANTED_SECRET }",
        "${oc.decode:'$' }",
        "${oc.create:'{a: 1}'}",
        "${oc.${seed}:PLANTED_SECRET}",
        "${seed:${oc.env:PLANTED_SECRET}}",
        "\\\\${oc.env:PLANTED_SECRET}",
        "${hydra:runtime.cwd}",
        "${now:%Y}",
        "${description.${seed}}",
        "${unfinished",
    ],
)
def test_no_resolver_in_a_file(write, value):
    quoted = value.replace("'", "''")
    message = refused(write(f"{HEAD}seed: 1\ndescription: '{quoted}'\n"))
    assert "experiments/planted.yaml:6: description: only plain references" in message


def test_a_secret_is_not_pieced_together(write):
    text = "data: {a: '$', b: '{oc.env:PLANTED_SECRET}'}\ndescription: '${data.a}${data.b}'\n"
    data = compose(["experiment=planted"], write(HEAD + text)).data
    assert data["description"] == "${oc.env:PLANTED_SECRET}"
    assert SECRET not in str(data)


def test_a_constitution_holds_none_either(write):
    write("description: '${oc.env:PLANTED_SECRET}'\nprinciples: []\n", "other", "constitutions")
    message = refused(write("defaults:\n  - /constitution: other\n  - _self_\n"))
    assert "constitutions/other.yaml:1: description" in message


def test_plain_references_and_escaped_ones_stay(write):
    fields = "source: 'hf:x', max: '${seed}', up: '${.source}', far: '${..a.source}'"
    text = f"seed: 7\nname: planted\nmodels: {{a: {{{fields}}}}}\n"
    data = compose(["experiment=planted"], write(f"{HEAD}{text}description: 'costs \\${{price}}'\n")).data
    assert data["models"]["a"] == {"source": "hf:x", "max": 7, "up": "hf:x", "far": "hf:x"}
    assert data["description"] == "costs ${price}"


def test_the_command_line_is_the_users_own(write):
    data = compose(["experiment=planted", "description=${oc.env:PLANTED_SECRET}"], write(HEAD)).data
    assert data["description"] == SECRET


def test_references_that_multiply_are_bounded(write):
    doubled = "\n".join(f"  a{n}: '${{data.a{n - 1}}}${{data.a{n - 1}}}'" for n in range(1, 19))
    small = "\n".join(doubled.splitlines()[:10])
    assert len(compose(["experiment=planted"], write(f"{HEAD}data:\n  a0: ab\n{small}\n")).data["data"]["a10"]) == 2048
    many = doubled + "".join(f"\n  b{n}: ['${{data.a{17}}}', '${{data.a{17}}}']" for n in range(40))
    assert "references come to more than 8 MiB" in refused(write(f"{HEAD}data:\n  a0: ab\n{many}\n"))
    tree = "\n".join(f"  a{n}: {{l: '${{data.a{n - 1}}}', r: '${{data.a{n - 1}}}'}}" for n in range(1, 19))
    more = tree + "".join(f"\n  b{n}: '${{data.a{18}}}'" for n in range(40))
    assert "references come to more than 8 MiB" in refused(write(f"{HEAD}data:\n  a0: ab\n{more}\n"))


@pytest.mark.parametrize(
    "text", ["data: {a: '${data.b}', b: '${data.a}'}", "data: {a: {b: '${data}'}}", "seed: ${seed}"]
)
def test_a_reference_to_itself_is_told(write, text):
    assert "refers to itself" in refused(write(f"{HEAD}{text}\n"))


def test_a_long_way_of_references_is_told(write):
    chain = "".join(f"  a{n}: ${{data.a{n + 1}}}\n" for n in range(5000))
    assert "behind more than 20 references" in refused(write(f"{HEAD}data:\n{chain}  a5000: 1\n"))
