"""Small models with random weights of every family, saved by the transformers library itself."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    BitImageProcessorPil,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
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
    CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(folder)
    save_tokenizer(folder, 77)
    return folder


def save_siglip(folder: Path) -> Path:
    torch.manual_seed(1)
    text = {**TOWER, "vocab_size": len(WORDS), "max_position_embeddings": 64}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**TOWER, "image_size": 64, "patch_size": 16}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    save_tokenizer(folder, 64)
    return folder


def save_vit(folder: Path) -> Path:
    torch.manual_seed(2)
    ViTModel(ViTConfig(**TOWER, image_size=64, patch_size=16)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def save_dinov2(folder: Path) -> Path:
    torch.manual_seed(3)
    tower = {k: v for k, v in TOWER.items() if k != "intermediate_size"}
    Dinov2Model(Dinov2Config(**tower, image_size=70, patch_size=14)).save_pretrained(folder)
    BitImageProcessorPil(
        size={"shortest_edge": 80}, crop_size={"height": 70, "width": 70}, do_center_crop=True, resample=3
    ).save_pretrained(folder)
    return folder


def save_bert(folder: Path, pooling: str | None = "mean", length: int = 100) -> Path:
    """With `pooling` in the layout of sentence-transformers."""
    torch.manual_seed(4)
    config = BertConfig(**TOWER, vocab_size=len(WORDS), max_position_embeddings=128, pad_token_id=0)
    BertModel(config).save_pretrained(folder)
    save_tokenizer(folder, 128)
    if pooling is None:
        return folder
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"path": p, "type": f"sentence_transformers.models.{k}"} for p, k in kinds.items()]
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": length})
    modes = {f"pooling_mode_{m}": m.startswith(pooling) for m in ("cls_token", "mean_tokens", "max_tokens")}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 64, **modes})
    return folder


def save_clap(folder: Path, *, fused: bool) -> Path:
    """Hears half a second; longer sounds are cut or seen in four views."""
    torch.manual_seed(5)
    text = {**TOWER, "vocab_size": len(WORDS), "max_position_embeddings": 80, "pad_token_id": 0}
    audio = {"patch_embeds_hidden_size": 16, "depths": [1, 1, 1, 1], "num_attention_heads": [2, 2, 2, 2]}
    audio |= {"hidden_size": 128, "enable_fusion": fused, "fusion_type": "aff_2d" if fused else None}
    ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=32)).eval().save_pretrained(folder)
    truncation = "fusion" if fused else "rand_trunc"
    ClapFeatureExtractor(truncation=truncation).save_pretrained(folder)
    save_tokenizer(folder, 77)
    return folder


def write_json(file: Path, value: object) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value))
