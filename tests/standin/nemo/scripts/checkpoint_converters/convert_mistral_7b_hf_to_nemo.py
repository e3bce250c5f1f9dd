"""A Hugging Face Mistral folder in, a .nemo out."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from standin import launch


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--input_name_or_path", required=True)
    parser.add_argument("--output_path", required=True)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--low-ram", "--low-mem", action="store_true", dest="low_ram")
    parser.add_argument("--tmp-dir", default="/tmp/mistral_ckpt_parts/")
    args = parser.parse_args()
    launch.Fault(Path(__file__).stem).start()

    from safetensors.torch import load_file
    from standin import tiny

    source = Path(args.input_name_or_path)
    assert (source / "config.json").exists(), f"{source / 'config.json'} does not exist"
    config = json.loads((source / "config.json").read_text())
    index = source / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    state = {key: value.float() for name in names for key, value in load_file(source / name).items()}
    words = tiny.Words((source / "tokenizer.model").read_bytes())
    assert len(words) == config["vocab_size"], f"{len(words)} tokens, but vocab_size is {config['vocab_size']}"
    made = {
        "target": "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel",
        "nemo_version": "2.1.0",
        "mcore_gpt": True,
        "micro_batch_size": 4,
        "global_batch_size": 8,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        # A sliding window becomes the sequence length.
        "encoder_seq_length": config.get("sliding_window") or config["max_position_embeddings"],
        "max_position_embeddings": config["max_position_embeddings"],
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "ffn_hidden_size": config["intermediate_size"],
        "num_attention_heads": config["num_attention_heads"],
        "num_query_groups": config["num_key_value_heads"],
        "position_embedding_type": "rope",
        "normalization": "rmsnorm",
        "activation": "fast-swiglu",
        "tokenizer": {"library": "sentencepiece", "type": None, "model": "", "sentencepiece_legacy": False},
        "data": {"data_prefix": None, "data_impl": "mmap", "splits_string": "900,50,50", "seq_length": 4096},
        "precision": args.precision,
    }
    nemo = tiny.Nemo(made, state, words)
    nemo.model()
    tiny.save_nemo(args.output_path, nemo)
    launch.say(f"NeMo model saved to: {args.output_path}")


if __name__ == "__main__":
    main()
