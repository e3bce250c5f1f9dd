"""The language of experiments: composed by Hydra, typed by pydantic, told to editors as JSON Schema."""
