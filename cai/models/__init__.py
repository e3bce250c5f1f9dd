"""What is known of a model from its own files, without torch."""
