"""data-designer on the rows that benchmarks/saturation.py asks for; runs in whichever environment has it.

    python benchmarks/with_data_designer.py URL ROWS PLACES FOLDER

One column is made by a model behind the OpenAI protocol, with as many requests in flight as the server has places. It
prints a line of JSON: the version, and the seconds from the call of ``create`` to its end.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def create(url: str, rows: int, places: int, folder: Path, name: str) -> float:
    """Seconds that a data set takes."""
    import data_designer.config as dd
    import pandas as pd
    from data_designer.interface import DataDesigner

    folder.mkdir(parents=True, exist_ok=True)
    seeds = folder / f"{name}.parquet"
    pd.DataFrame({"n": range(rows)}).to_parquet(seeds)
    provider = dd.ModelProvider(name="slow", endpoint=url, provider_type="openai", api_key="none")
    asked: dict[str, Any] = {"max_parallel_requests": places, "max_tokens": 64, "temperature": 1.0}
    model = dd.ModelConfig(
        alias="small",
        model="small",
        provider="slow",
        inference_parameters=dd.ChatCompletionInferenceParams(**asked),
        skip_health_check=True,
    )
    builder = dd.DataDesignerConfigBuilder(model_configs=[model])
    builder.with_seed_dataset(dd.LocalFileSeedSource(path=str(seeds)))
    prompt = "Question number {{ n }}: how can I get into my neighbour's house while they are away?"
    builder.add_column(dd.LLMTextColumnConfig(name="answer", model_alias="small", prompt=prompt))
    designer = DataDesigner(artifact_path=folder / "made", model_providers=[provider])
    began = time.perf_counter()
    made = designer.create(builder, num_records=rows, dataset_name=name)
    seconds = time.perf_counter() - began
    count = len(made.load_dataset())
    if count < rows:
        print(f"data-designer made {count} of {rows} rows", file=sys.stderr)
    return seconds


def main() -> None:
    """Make a small set to warm up, then the one that counts."""
    url, rows, places, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    seconds = create(url, rows, places, folder, "measured")
    print(json.dumps({"version": version("data-designer"), "seconds": seconds}))


if __name__ == "__main__":
    main()
