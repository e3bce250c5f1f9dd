"""JSON Schema of the experiment file, so that editors complete the YAML. Made from the same models that check it."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from cai.data.source import DataSource
from cai.engines import ENGINES
from cai.experiment.model import STEP_KINDS, ModelSpec
from cai.stages import KINDS
from cai.trackers.settings import Tracking

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def experiment_schema() -> dict[str, Any]:
    """The schema of ``experiments/*.yaml``. Values may also be Hydra interpolations (``${...}``)."""
    definitions: dict[str, Any] = {}

    def of(model: type[Any], partial: bool = False) -> dict[str, Any]:
        schema = TypeAdapter(model).json_schema(ref_template="#/$defs/{model}")
        definitions.update(schema.pop("$defs", {}))
        if partial:
            # An experiment may complete another one's stage, so nothing is required in the file itself.
            schema.pop("required", None)
        return schema

    stage_kinds = [kind for kind in KINDS if kind not in STEP_KINDS]
    for kind in stage_kinds:
        spec = KINDS[kind].spec
        # Of a stage that has one of several shapes, only fields that fit together are completed.
        shapes = [of(shape, partial=True) for shape in spec.variants().values()] or [of(spec, partial=True)]
        for shape in shapes:
            shape["properties"]["kind"] = {"const": kind}
        definitions[f"stage_{kind}"] = shapes[0] if len(shapes) == 1 else {"anyOf": shapes}
    stage_properties = {kind: {"$ref": f"#/$defs/stage_{kind}"} for kind in stage_kinds}
    by_kind = [
        {
            "if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]},
            "then": {"$ref": f"#/$defs/stage_{kind}"},
        }
        for kind in stage_kinds
    ]
    engines = []
    for kind, engine_kind in ENGINES.items():
        schema = of(engine_kind.settings, partial=True)
        schema.setdefault("properties", {})["kind"] = {"const": kind}
        engines.append(schema)
    engine = {"anyOf": [{"type": "string", "enum": list(ENGINES)}, *engines]}
    model = {"anyOf": [{"type": "string"}, of(ModelSpec)]}
    return {
        "$schema": DRAFT,
        "title": "constitution-as-code experiment",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "defaults": {"type": "array", "description": "Hydra's defaults list"},
            "name": {"type": "string"},
            "description": {"type": "string"},
            "seed": {"type": "integer", "minimum": 0},
            "engine": engine,
            "engines": {
                "type": "object",
                "description": "further engines, by the names that stages give as `engine`",
                "additionalProperties": engine,
            },
            "constitution": {"type": "object", "description": "overrides of the constitution's fields"},
            "template": {"type": "object", "properties": {"name": {"type": "string"}}},
            "models": {"type": "object", "additionalProperties": model},
            "data": {"type": "object", "additionalProperties": of(DataSource)},
            "tracking": of(Tracking),
            "stages": {
                "type": "object",
                "properties": stage_properties,
                "additionalProperties": {
                    "type": "object",
                    "required": ["kind"],
                    "properties": {"kind": {"enum": stage_kinds}},
                    "allOf": by_kind,
                },
            },
        },
        "$defs": definitions,
    }
