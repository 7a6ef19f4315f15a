# SPDX-License-Identifier: Apache-2.0
"""bf16_folder.py MODEL.gguf FOLDER: the weights of a GGUF file as a folder that transformers and vLLM read, in BF16. Runs in vLLM's
environment (called by ./vllm)."""
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main() -> None:
    source, folder = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2])
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16,
                                                 quantization_config=GgufConfig(dequantize=True))
    # What is saved is dense.
    model.hf_quantizer = None
    model.is_quantized = False
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


main()
