# mypy: ignore-errors
"""Run by the engine's Python: a random Llama of half a million parameters, for tests of correctness and never of speed.

    python make_tiny.py OUT_FOLDER

Seeded throughout: every machine gets the same tokenizer and the same weights.
"""

import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

out = Path(sys.argv[1])
generator = random.Random(0)  # noqa: S311 - made-up words
syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "ing")]
words = ["".join(generator.choices(syllables, k=generator.randint(1, 3))) for _ in range(600)]
lines = [" ".join(generator.choices(words, k=12)).capitalize() + "." for _ in range(2000)]

bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bpe.decoder = decoders.ByteLevel()
bpe.train_from_iterator(
    lines,
    trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    ),
)
special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **special)
tokenizer.chat_template = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=len(tokenizer),
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=2048,
    bos_token_id=0,
    eos_token_id=1,
    initializer_range=0.1,  # wide enough that the best token stands apart, so that greedy answers repeat
)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(out)
tokenizer.save_pretrained(out)
