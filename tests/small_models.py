"""Small CLIP and SigLIP models with random weights, saved by the transformers library itself."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "map", "of", "the", "world", "two", "people", "talk"]
TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def save_tokenizer(folder: Path, length: int) -> None:
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<start>", eos_token="<end>", model_max_length=length
    ).save_pretrained(folder)


def save_clip(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    text = {**TOWER, "vocab_size": len(WORDS), "max_position_embeddings": 77}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**TOWER, "image_size": 64, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=48)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(folder)
    save_tokenizer(folder, 77)
    return folder


def save_siglip(folder: Path) -> Path:
    torch.manual_seed(1)
    text = {**TOWER, "vocab_size": len(WORDS), "max_position_embeddings": 64}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**TOWER, "image_size": 64, "patch_size": 16}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    save_tokenizer(folder, 64)
    return folder
