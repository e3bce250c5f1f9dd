"""Judging: a question about answers becomes a verdict. Free of stages, so that whatever asks a judge can use it."""
