"""An OpenAI-compatible server around one model."""
