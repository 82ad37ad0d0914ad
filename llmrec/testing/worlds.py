"""Tiny worlds built in process: a catalogue, logs with a pattern to learn, tokenizers and models. No network.

Everything is deterministic. Models are fresh on each call, so a test may train or resize them.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

Family = Literal["llama", "qwen3", "gemma2", "mistral"]
TokenizerKind = Literal["bpe", "spm", "spm-nobos"]

_ADJECTIVES = ("Silent", "Golden", "Crimson", "Frozen", "Hidden", "Electric", "Lonely", "Ancient", "Broken", "Distant")
_NOUNS = ("River", "Garden", "Empire", "Harbor", "Station", "Forest")
_GENRES = ("Drama", "Comedy", "Thriller", "Western", "Animation", "Science Fiction")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_items(count: int = 60) -> list[dict[str, Any]]:
    """`count` items with ``item_id`` (text), ``title``, ``genres`` (list of text) and ``year`` (int).

    Titles are distinct; item ``i`` has the genre ``i % 6``, so text and behaviour agree.
    """
    return [
        {
            "item_id": str(i + 1),
            "title": f"The {_ADJECTIVES[i % 10]} {_NOUNS[(i // 10) % 6]}" + (f" {i // 60 + 1}" if i >= 60 else ""),
            "genres": [_GENRES[i % 6]],
            "year": 1950 + i,
        }
        for i in range(count)
    ]


def tiny_events(num_users: int = 40, num_items: int = 60, seed: int = 0) -> list[tuple[str, str, int]]:
    """``(user_id, item_id, timestamp)`` rows: every user walks through one genre with a little noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        genre = user % 6
        length = int(rng.integers(5, 13))
        item = genre + 6 * int(rng.integers(0, num_items // 6))
        for step in range(length):
            rows.append((str(user + 1), str(item + 1), 1000 * user + step))
            item = (item + 6) % num_items if rng.random() < 0.9 else int(rng.integers(0, num_items))
    return rows


def write_tiny_folder(folder: Path, num_users: int = 40, num_items: int = 60, seed: int = 0) -> Path:
    """Write the world as a data folder (``interactions.csv`` and ``items.jsonl``) and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{user},{item},{time}\n" for user, item, time in tiny_events(num_users, num_items, seed))
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + rows, encoding="utf-8")
    items = "".join(json.dumps(item) + "\n" for item in tiny_items(num_items))
    (folder / "items.jsonl").write_text(items, encoding="utf-8")
    return folder


def _corpus() -> list[str]:
    sentences = [f"{item['title']} is a {item['genres'][0]} from {item['year']}." for item in tiny_items()]
    return sentences * 4 + ["user assistant system history: which item comes next? why? because you liked"] * 20


def tiny_tokenizer(kind: TokenizerKind = "bpe", vocab_size: int = 400) -> Any:
    """A tokenizer of one of the field's kinds, trained here on the tiny titles.

    ``bpe`` is byte-level BPE with ChatML markers and a pad token (Qwen, Llama 3, SmolLM);
    ``spm`` is SentencePiece with BOS and without a pad token (Llama 2, Mistral, Gemma); ``spm-nobos`` adds no BOS.
    """
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    if kind == "bpe":
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        raw.train_from_iterator(
            _corpus(),
            trainers.BpeTrainer(
                vocab_size=vocab_size,
                special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token="<|im_start|>"
        )
        tokenizer.chat_template = CHAT_TEMPLATE
        return tokenizer

    import sentencepiece

    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.txt"
        corpus.write_text("\n".join(_corpus()), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=str(Path(folder) / "tokenizer"), vocab_size=vocab_size, model_type="bpe",
            byte_fallback=True, character_coverage=1.0, minloglevel=2,
        )  # fmt: skip
        return LlamaTokenizer.from_pretrained(folder, add_bos_token=kind == "spm")


def tiny_model(tokenizer: Any, family: Family = "llama", *, tied: bool = True, seed: int = 0, head_dim: int = 8) -> Any:
    """A two-layer causal LM of hidden size 32 in fp32 evaluation mode, with `tokenizer`'s vocabulary size."""
    import torch
    import transformers

    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": head_dim,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family in ("gemma2", "mistral"):
        shape["sliding_window"] = 16
    names = {"llama": "LlamaConfig", "qwen3": "Qwen3Config", "gemma2": "Gemma2Config", "mistral": "MistralConfig"}
    torch.manual_seed(seed)
    config = getattr(transformers, names[family])(**shape)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
