"""Small real models for tests that need no trained one."""

import os
import signal
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

# Every test writes to a folder of its own; nothing may land in the developer's home.
for name in [name for name in os.environ if name.startswith("EVOSELECT_")]:
    if name not in ("EVOSELECT_LONG", "EVOSELECT_FUZZ_SECONDS"):
        del os.environ[name]
torch.set_num_threads(1)  # the suite runs on several workers
# A suite that a script put in the background ignores Ctrl-C, and so would every child of a test.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random weights, saved as safetensors."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    folder = tmp_path_factory.mktemp("tiny_llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
