"""The embedded engine: torch, transformers and openvino-genai on this machine."""
