# mypy: ignore-errors
"""Run by the engine's Python: SmolLM2-135M-Instruct from its GGUF file to bf16 safetensors, which vLLM serves on a CPU.

python convert_gguf.py MODEL.gguf OUT_FOLDER
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

source, out = Path(sys.argv[1]), Path(sys.argv[2])
print("reading the tokenizer", flush=True)
tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
if not tokenizer.chat_template:
    sys.exit(f"{source.name} carries no chat template; this converter expects one")
print("dequantizing the weights", flush=True)
model = AutoModelForCausalLM.from_pretrained(
    source.parent, gguf_file=source.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
)
# The copy is plain bf16: what says otherwise would send vLLM looking for GGUF kernels.
if getattr(model.config, "quantization_config", None) is not None:
    del model.config.quantization_config
model.is_quantized, model.hf_quantizer = False, None
print("writing safetensors", flush=True)
model.save_pretrained(out)
tokenizer.save_pretrained(out)
