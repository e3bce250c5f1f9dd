"""``chat`` and ``serve``: the finished model of a run, in the terminal and over the OpenAI protocol."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from cai.clients.base import Client, Sampling
from cai.commands.common import Options, find_run, options, read_plan
from cai.errors import PrerequisiteError, Problem, SpecError, did_you_mean
from cai.plan import Plan, Step
from cai.terminal.chat import CHAT_SAMPLING, ChatModel, ask, chat, estimate_tokens


def _model_options(verb: str, description: str) -> Options:
    parser = options(verb, description)
    parser.add_argument("run", nargs="?", help="run folder or experiment; by default the newest run")
    parser.add_argument("--step", help="a step that makes a model; by default the run's last one")
    parser.add_argument("--max-tokens", type=int, default=CHAT_SAMPLING.max_tokens)
    parser.add_argument("--temperature", type=float, default=CHAT_SAMPLING.temperature)
    parser.add_argument("--server", metavar="URL", help="a NeMo /generate server that has the model already")
    return parser


def chat_verb(args: Sequence[str]) -> int:
    """Talk, or answer ``--message``."""
    parser = _model_options("chat", "Talk to the finished model.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--system", default="", help="a system message")
    parser.add_argument("--message", action="append", default=[], help="answer this and leave; can be given again")
    parser.add_argument("--compare", action="store_true", help="show the base model's answers beside")
    parsed = parser.parse_args(list(args))
    sampling = replace(CHAT_SAMPLING, max_tokens=parsed.max_tokens, temperature=parsed.temperature)
    plan, step = _run_with_model(parsed.run, parsed.step)
    if parsed.compare and parsed.server:
        raise SpecError(Problem("--compare", "one --server has one model", "leave out one of the two"))
    with _speaker(plan, step, sampling=sampling, seed=parsed.seed, server=parsed.server) as speaker:
        if not parsed.compare:
            _talk(speaker, None, parsed.message, parsed.system)
            return 0
        with _speaker(plan, _base_step(plan, step), sampling=sampling, seed=parsed.seed) as beside:
            _talk(speaker, beside, parsed.message, parsed.system)
    return 0


def _talk(speaker: ChatModel, beside: ChatModel | None, questions: Sequence[str], system: str) -> None:
    if questions:
        ask(speaker, questions, beside=beside, system=system)
    else:
        chat(speaker, beside=beside, system=system)


def serve_verb(args: Sequence[str]) -> int:
    """Serve until interrupted."""
    parser = _model_options("serve", "Serve the finished model with an OpenAI-compatible API.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; the default is this machine only")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--api-key-env", help="name of the environment variable with the key that callers must send")
    parsed = parser.parse_args(list(args))
    from cai.clients.key_hosts import is_loopback
    from cai.serving.server import api_key_from, make_app, serve

    key = api_key_from(parsed.api_key_env)
    sampling = replace(CHAT_SAMPLING, max_tokens=parsed.max_tokens, temperature=parsed.temperature)
    plan, step = _run_with_model(parsed.run, parsed.step)
    with _speaker(plan, step, sampling=sampling, seed=0, server=parsed.server) as speaker:
        app = make_app(replace(speaker, name=plan.experiment), api_key=key, local=is_loopback(parsed.host))
        serve(app, parsed.host, parsed.port)
    return 0


def _run_with_model(run: str | None, step: str | None) -> tuple[Plan, Step]:
    """The run that is meant and its model; of an experiment, the newest run whose model has been made.

    Raises:
        SpecError: when none of them has made it.
    """
    from cai.run.submission import shown_run
    from cai.store.artifacts import default_store

    run_dir = find_run(run)
    candidates = [(plan := read_plan(run_dir / "plan.json"), _model_step(plan, step))]
    if run is None or not Path(run).is_dir():
        for folder in sorted((p for p in run_dir.parent.iterdir() if p.is_dir() and not p.is_symlink()), reverse=True):
            if folder != run_dir and (folder / "plan.json").is_file():
                older = read_plan(folder / "plan.json")
                with suppress(SpecError):  # an older run may have been of another shape, without such a step
                    candidates.append((older, _model_step(older, step)))
    store = default_store()
    for plan, maker in candidates:
        if store.find(maker.kind, maker.key) is not None:
            return plan, maker
    plan, maker = candidates[0]
    again = f"`python -m cai resume {shown_run(run_dir)}` makes it"
    raise SpecError(Problem(f"{plan.experiment}: {maker.name}", "the model has not been made yet", again))


def _model_step(plan: Plan, name: str | None) -> Step:
    makers = [step.name for step in plan.steps if step.makes == "model"]
    if name is None:
        name = plan.outputs.get("model")
        if name is None:
            raise SpecError(Problem(plan.experiment, "this run makes no model", "give another run"))
    if name not in makers:
        raise SpecError(Problem("--step", f"'{name}' makes no model", did_you_mean(name, makers)))
    return plan.step(name)


def _base_step(plan: Plan, step: Step) -> Step:
    """The fetched model that a model was trained from."""
    while step.kind != "fetch":
        source = step.source("model")
        assert source is not None
        step = plan.step(source)
    return step


def _template(plan: Plan, step: Step) -> tuple[str, str]:
    for candidate in (step, *reversed(plan.steps)):
        if "template" in candidate.resources:
            return candidate.resources["template"]["name"], candidate.resources["template"]["text"]
    raise SpecError(Problem(plan.experiment, "has no chat template", "give `template=NAME` in the experiment"))


@contextmanager
def _speaker(
    plan: Plan, step: Step, *, sampling: Sampling, seed: int, server: str | None = None
) -> Iterator[ChatModel]:
    from cai.chat import ChatTemplate
    from cai.data.nemo_tokens import context_length, open_tokenizer
    from cai.store.artifacts import default_store

    gc.enable()
    stored = default_store().find(step.kind, step.key)
    if stored is None:  # the base model of a comparison
        message, again = "is not in the store any more", "leave out --compare, or run the experiment again"
        raise SpecError(Problem(f"{plan.experiment}: {step.name}", message, again))
    name, text = _template(plan, step)
    template = ChatTemplate.from_text(name, text, name)
    print(f"loading {step.name} ({stored.path.name}) ...", file=sys.stderr)
    with _client(plan, step, stored.path, server) as client:
        try:
            count: Callable[[str], int] = open_tokenizer(stored.path).count
        except PrerequisiteError:
            count = estimate_tokens  # an endpoint, or a model without a tokenizer that we can read: a rough count
        yield ChatModel(client, template, step.name, sampling, seed, context_length(stored.path), count)


@contextmanager
def _client(plan: Plan, step: Step, model: Path, server: str | None) -> Iterator[Client]:
    from cai.engines import make_engine
    from cai.run.checks import server_of
    from cai.stages.base import serving

    if server:
        from cai.clients.nemo_generate import NemoGenerateClient
        from cai.data.nemo_tokens import open_tokenizer

        with closing(NemoGenerateClient([server.rstrip("/")], open_tokenizer(model))) as client:
            yield client
        return
    settings = dict(plan.engine_of(step))
    if settings["kind"] == "embedded":
        # For one answer at a time transformers starts sooner than openvino-genai, and can show it word by word.
        settings["generator"] = "transformers"
    engine = make_engine(settings, plan)
    try:
        with serving(engine.session(None), model, server=server_of(step)) as client:
            yield client
    finally:
        engine.close()
