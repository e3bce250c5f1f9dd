"""The ready workflow: its script, taken out of the YAML, in a real repository, with a ``gh`` that notes its calls."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cai.files.library import shipped_root
from tests.support.review_project import commit, edit, git, repository

pytestmark = pytest.mark.long
WORKFLOW = shipped_root() / "docs" / "github" / "cai-review.yml"

GH = """\
#!{python}
import json, os, pathlib, sys
args = sys.argv[1:]
folder = pathlib.Path(os.environ["GH_CALLS"])
body = next((pathlib.Path(a[6:]).read_text() for a in args if a.startswith("body=@")), None)
with (folder / "calls.jsonl").open("a") as file:
    file.write(json.dumps({{"args": args, "body": body, "token": os.environ.get("GH_TOKEN", "")}}) + "\\n")
if "--jq" in args:
    print((folder / "comment").read_text() if (folder / "comment").exists() else "", end="")
elif (folder / "refuse").exists():
    sys.exit("HTTP 403: Resource not accessible by integration")
"""


@pytest.fixture(scope="module")
def workflow():
    return yaml.safe_load(WORKFLOW.read_text())


@pytest.fixture
def repo(tmp_path):
    """A repository of which ``main`` is the base, on a branch with nothing changed yet."""
    folder = repository(tmp_path / "repo")
    git(folder, "checkout", "-q", "-b", "change")
    return folder


class Job:
    """One run of both jobs: what they printed, the review's exit code, and what ``gh`` was asked."""

    def __init__(self, folder: Path, workflow: dict, **env: str) -> None:
        at = folder.parent / "job"
        (at / "bin").mkdir(parents=True, exist_ok=True)
        gh = at / "bin" / "gh"
        gh.write_text(GH.format(python=sys.executable))
        gh.chmod(0o755)
        self.summary, calls = at / "summary.md", at / "calls.jsonl"
        calls.unlink(missing_ok=True)
        path = os.pathsep.join([str(at / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        told = {
            "PATH": path,
            "GH_CALLS": str(at),
            "CAI_HOME": str(at / "home"),
            "GITHUB_STEP_SUMMARY": str(self.summary),
        }
        told |= {"HOME": str(at), "TMPDIR": str(at)}
        values = {"runner.temp": str(at), "github.event.pull_request.base.sha": git(folder, "rev-parse", "main")}
        values |= {"github.event.pull_request.number": "7", "github.repository": "house/rules", "github.token": "t0ken"}

        def run(job: str, name: str, cwd: Path) -> subprocess.CompletedProcess[str]:
            step = step_of(workflow, job, name)
            own = {k: re.sub(r"\$\{\{ (.*?) \}\}", lambda m: values[m[1]], v) for k, v in step["env"].items()}
            argv = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
            own |= {k: v for k, v in env.items() if k in own}
            return subprocess.run(argv, cwd=cwd, env=told | own, capture_output=True, text=True, timeout=120)

        done = run("review", "Review", folder)
        # The second job has the artifact of the first and no repository.
        (at / "elsewhere").mkdir(exist_ok=True)
        second = run("comment", "Comment", at / "elsewhere")
        assert second.returncode == 0, second.stderr
        self.code, self.out, self.err = done.returncode, done.stdout + second.stdout, done.stderr + second.stderr
        self.calls = [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
        self.sent = [call for call in self.calls if call["body"] is not None]


def step_of(workflow, job, name):
    (step,) = (step for step in workflow["jobs"][job]["steps"] if step.get("name") == name)
    return step


def changed(folder):
    edit(f"{folder}/constitutions/house.yaml", ("that are rude.", "that are rude or unfair."))
    edit(f"{folder}/experiments/small.yaml", ("epochs: 2", "epochs: 3"))
    return commit(folder, "kinder, and longer")


def test_a_changed_principle_and_hyper_parameter_become_one_comment(repo, workflow):
    changed(repo)
    job = Job(repo, workflow)
    assert job.code == 0, job.err
    (sent,) = job.sent
    assert sent["args"][:4] == ["api", "--silent", "--method", "POST"]
    assert sent["args"][4] == "repos/house/rules/issues/7/comments"
    assert sent["body"].startswith("<!-- cai-review -->\n## 1 experiment differs")
    assert "Name the words in the answer that are ~~rude.~~ **rude or unfair.**" in sent["body"]
    assert "stages.sft.training.epochs: 2 → 3" in sent["body"]
    assert job.summary.read_text() in sent["body"]
    assert git(repo, "status", "--porcelain") == ""


def test_the_next_push_writes_the_same_comment_anew(repo, workflow):
    changed(repo)
    Job(repo, workflow)
    (repo.parent / "job" / "comment").write_text("991\n992\n")
    job = Job(repo, workflow)
    (sent,) = job.sent
    assert sent["args"][2:5] == ["--method", "PATCH", "repos/house/rules/issues/comments/991"]


def test_no_comment_is_begun_where_nothing_differs_and_an_old_one_says_so(repo, workflow):
    (repo / "README.md").write_text("words\n")
    commit(repo, "nothing of interest")
    assert Job(repo, workflow).sent == []
    (repo.parent / "job" / "comment").write_text("991\n")
    (sent,) = Job(repo, workflow).sent
    assert "## No experiment differs" in sent["body"]


def test_what_others_did_on_the_base_meanwhile_is_not_told(repo, workflow):
    changed(repo)
    git(repo, "checkout", "-q", "main")
    edit(f"{repo}/experiments/small.yaml", ("seed: 0", "seed: 5"))
    commit(repo, "another seed")
    git(repo, "checkout", "-q", "change")
    (sent,) = Job(repo, workflow).sent
    assert "seed: 0" not in sent["body"]


def test_gates_fail_the_job_after_the_comment(repo, workflow):
    changed(repo)
    job = Job(repo, workflow, FAIL_ON="principles,seed")
    assert job.code == 1
    assert "held back by principles" in job.err
    assert "Held back by `principles`" in job.sent[0]["body"]
    assert "seed" not in job.err


def test_an_experiment_that_does_not_compile_is_told(repo, workflow):
    edit(f"{repo}/experiments/small.yaml", ("model: sft, prompts", "modle: sft, prompts"))
    commit(repo, "a typing error")
    job = Job(repo, workflow)
    assert job.code == 2
    assert "small cannot be compiled" in job.sent[0]["body"]
    assert "did you mean 'model'" in job.sent[0]["body"]


def test_a_forks_token_that_cannot_write_leaves_the_review_in_the_summary(repo, workflow):
    changed(repo)
    (repo.parent / "job").mkdir()
    (repo.parent / "job" / "refuse").touch()
    job = Job(repo, workflow)
    assert job.code == 0
    assert "::notice::" in job.out
    assert "epochs: 2 → 3" in job.summary.read_text()


def test_hostile_texts_of_a_pull_request_stay_texts(repo, workflow):
    mark = repo.parent / "owned"
    hostile = f"$(touch {mark}) `touch {mark}` <script>alert(1)</script> @everyone ![x](http://evil.example/x.png)"
    edit(f"{repo}/constitutions/house.yaml", ("Say where the answer helps to break a law.", json.dumps(hostile)))
    commit(repo, hostile)
    (sent,) = Job(repo, workflow).sent
    assert not mark.exists()
    assert re.search(r"(?<!\\)<script", sent["body"]) is None
    assert "@everyone" not in sent["body"]
    assert re.search(r"(?<!\\)!\[x\]\(", sent["body"]) is None


def test_no_text_of_an_event_reaches_a_shell_and_permissions_are_few(workflow):
    for job in workflow["jobs"].values():
        assert all("${{" not in step.get("run", "") for step in job["steps"])
    assert workflow["permissions"] == {}
    assert {name: job["permissions"] for name, job in workflow["jobs"].items()} == {
        "review": {"contents": "read"},
        "comment": {"pull-requests": "write"},
    }
    triggers = workflow[True]  # ``on`` is a truth value in YAML 1.1.
    assert list(triggers) == ["pull_request"]
    assert {"experiments/**", "constitutions/**", "prompt_templates/**", "data/**"} <= set(
        triggers["pull_request"]["paths"]
    )


def test_what_reads_the_pull_requests_files_has_no_secret_and_what_has_one_reads_none(workflow):
    review, comment = workflow["jobs"]["review"], workflow["jobs"]["comment"]
    assert not re.search(r"secrets\.|github\.token|GH_TOKEN|GITHUB_TOKEN", json.dumps(review))
    checkout = next(step for step in review["steps"] if step.get("uses", "").startswith("actions/checkout"))
    assert checkout["with"]["persist-credentials"] is False
    assert "env" not in workflow
    assert [step.get("uses", step.get("name")) for step in comment["steps"]] == [
        "actions/download-artifact@v4",
        "Comment",
    ]
    assert "secrets." not in json.dumps(comment)
    assert "cai " not in step_of(workflow, "comment", "Comment")["run"]
