"""Preprocessing against each family's own at the published sizes, on real and on odd pictures; prints a table.

    pytest -m "slow" -s tests/encoders/test_parity.py
    PYTHONPATH=.:tests:tests/shim pytest -m "slow and vision" -s tests/encoders/test_parity.py

The pictures are decoded by mmstream's rule first (upright, transparency on white, 16 bits cut to 8): how a picture is
decoded is documented and differs from `Image.open(…).convert("RGB")` on purpose; what is compared is the resizing, the
crop and the normalisation. Where the pixels of both are equal the vectors are equal too, so that the model, of random
weights, runs on those that differ, and on the first sixteen to see that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from samples import real_pictures

from mmstream.encoders.build import load_encoder
from mmstream.encoders.preprocessing import Preprocessing, from_hf
from mmstream.encoders.resample import normalized, on_canvas
from mmstream.errors import Rejected
from mmstream.media.image import Picture, decode

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
Reference = Callable[[list[Image.Image]], torch.Tensor]


@pytest.fixture(scope="module")
def pictures(shared: Path) -> list[Picture]:
    """887 pairs, and of the odd images those that can be read."""
    found = [decode(data) for data in real_pictures()]
    for file in sorted((shared / "data" / "bad_inputs" / "images").iterdir()):
        try:
            found.append(decode(file.read_bytes()))
        except Rejected:
            continue
    assert len(found) > 887
    return found


def compared(
    name: str,
    pictures: list[Picture],
    ours: Preprocessing,
    reference: Reference,
    model: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Prints a row of the table and asserts the two bounds. Pixels are compared in [0, 1]."""
    std = torch.tensor(ours.std).reshape(1, 3, 1, 1)
    errors, cosines, differ = [], [], 0
    for start in range(0, len(pictures), 16):
        some = pictures[start : start + 16]
        mine = ours.normalized(torch.from_numpy(np.stack([ours.pixels(p) for p in some])))
        theirs = reference([Image.fromarray(p.rgb) for p in some])
        error = ((mine - theirs).abs() * std).mean((1, 2, 3))
        errors.append(error)
        rows = error > 1e-6
        differ += int(rows.sum())
        if start == 0:
            rows[:] = True
        if rows.any():
            with torch.inference_mode():
                cosines.append(torch.nn.functional.cosine_similarity(model(mine[rows]), model(theirs[rows])))
    error, cosine = torch.cat(errors), torch.cat(cosines)
    worst = f"{error.max():.2e} of {1 / 255:.2e}"
    print(
        f"\n{name:28} {len(pictures):5} pictures  {differ:3} differ  worst pixel error {worst}  "
        f"cosine ≥ {cosine.min():.6f}"
    )
    assert error.max() <= 1 / 255
    assert cosine.min() >= 0.999


def hf_model(family: str, folder: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """A model of the published size with random weights; its preprocessor is saved to `folder`."""
    import transformers as t

    torch.manual_seed(0)
    if family == "clip":  # ViT-B/32
        model = t.CLIPVisionModelWithProjection(t.CLIPVisionConfig(patch_size=32, projection_dim=512)).eval()
        t.CLIPImageProcessorPil().save_pretrained(folder)
        return lambda x: model(pixel_values=x).image_embeds
    if family == "siglip":  # base, patch 16
        model = t.SiglipVisionModel(t.SiglipVisionConfig()).eval()
        t.SiglipImageProcessorPil(size={"height": 224, "width": 224}).save_pretrained(folder)
        return lambda x: model(pixel_values=x).pooler_output
    if family == "dinov2":  # base, patch 14
        model = t.Dinov2Model(t.Dinov2Config(image_size=224, patch_size=14)).eval()
        size = {"shortest_edge": 256}
        t.BitImageProcessorPil(size=size, crop_size={"height": 224, "width": 224}, resample=3).save_pretrained(folder)
        return lambda x: model(pixel_values=x).last_hidden_state[:, 0]
    model = t.ViTModel(t.ViTConfig()).eval()
    t.ViTImageProcessorPil().save_pretrained(folder)
    return lambda x: model(pixel_values=x).last_hidden_state[:, 0]


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2", "vit"])
def test_hf_preprocessing_equals_the_librarys(family: str, pictures: list[Picture], tmp_path: Path) -> None:
    import transformers as t

    model = hf_model(family, tmp_path)
    processor = {
        "clip": t.CLIPImageProcessorPil,
        "siglip": t.SiglipImageProcessorPil,
        "dinov2": t.BitImageProcessorPil,
        "vit": t.ViTImageProcessorPil,
    }[family].from_pretrained(tmp_path)
    ours = from_hf(tmp_path, f"hf:{family}")
    compared(f"hf {family}", pictures, ours, lambda i: processor(images=i, return_tensors="pt")["pixel_values"], model)


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2", "vit"])
def test_the_devices_resize_equals_the_librarys_too(family: str, pictures: list[Picture], tmp_path: Path) -> None:
    model = hf_model(family, tmp_path)
    ours = from_hf(tmp_path, f"hf:{family}")
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (ours.mean, ours.std))

    def on_device(images: list[Image.Image]) -> torch.Tensor:
        tensors = [torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in images]
        return normalized(*on_canvas(tensors, ours), ours.scale, mean, std)

    compared(f"matmul {family}", pictures, ours, on_device, model)


@pytest.mark.vision
@pytest.mark.parametrize(
    "name", ["resnet50", "vgg16", "convnext_tiny", "efficientnet_b0", "vit_base_patch16_224", "lite0"]
)
def test_timm_preprocessing_equals_the_librarys(name: str, pictures: list[Picture], shared: Path) -> None:
    import timm

    from mmstream.encoders.timm import preprocessing_of

    if name == "lite0":
        file = shared / "models" / "tf_efficientnet_lite0.safetensors"
        encoder = load_encoder(f"timm:tf_efficientnet_lite0/{file}")
        module, ours = encoder.module, encoder.preprocessing
    else:
        torch.manual_seed(0)
        module = timm.create_model(name, pretrained=False, num_classes=0).eval()
        ours = preprocessing_of(timm, module, f"timm:{name}")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(module))
    compared(f"timm {name}", pictures, ours, lambda images: torch.stack([transform(i) for i in images]), module)


@pytest.mark.vision
@pytest.mark.parametrize("architecture", ["ViT-B-32", "ViT-B-16-SigLIP"])
def test_open_clip_preprocessing_equals_the_librarys(architecture: str, pictures: list[Picture]) -> None:
    import open_clip

    from mmstream.encoders.open_clip import preprocessing_of

    torch.manual_seed(0)
    module, _, transform = open_clip.create_model_and_transforms(architecture, pretrained=None)
    ours = preprocessing_of(module.visual.preprocess_cfg, architecture)
    reference = lambda images: torch.stack([transform(i) for i in images])  # noqa: E731
    compared(f"open_clip {architecture}", pictures, ours, reference, module.eval().encode_image)
