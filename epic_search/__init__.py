"""epic-search: a decoder-only LLM as a text encoder that learns a search task from a few example pairs."""

import os

# Idle OpenMP workers that spin take the cores from the tokenizer, the store and every other process.
# libgomp reads this once, when torch loads it, so it is set before anything here can import torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"
