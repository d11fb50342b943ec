"""timm and open_clip against the libraries themselves. Marked `vision`: they need the extra of that name.

Where torchvision does not load beside torch, run with tests/shim on PYTHONPATH, as `.ci/run` does.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from samples import photographs, real_pictures

from mmstream.encoders.build import load_encoder
from mmstream.errors import UnreachableError, UsageError
from mmstream.media.image import decode

pytestmark = pytest.mark.vision

# name, options that make it small where timm allows it
TIMM = ["resnet18", "vgg11", "efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224", "mobilenetv3_small_050"]
OPEN_CLIP = ["ViT-B-32", "RN50"]


def save_timm(name: str, folder: Path) -> Path:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False)
    safetensors.torch.save_file(model.state_dict(), folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def unit(vectors: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(vectors.float(), dim=-1).numpy()


@pytest.mark.parametrize("name", TIMM)
def test_a_timm_model_gives_what_timm_gives(name: str, tmp_path: Path) -> None:
    import timm

    file = save_timm(name, tmp_path)
    encoder = load_encoder(f"timm:{name}/{file}")
    reference = timm.create_model(name, pretrained=False)
    reference.load_state_dict(safetensors.torch.load_file(file))
    reference.reset_classifier(0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(reference))
    images = [transform(Image.fromarray(decode(p).rgb)) for p in photographs()]
    ours = encoder.preprocessing.normalized(
        torch.from_numpy(np.stack([encoder.preprocess(decode(p)) for p in photographs()]))
    )
    assert (ours - torch.stack(images)).abs().max() <= 1e-5
    with torch.inference_mode():
        wanted = unit(reference.eval()(torch.stack(images)))
    assert np.abs(encoder.encode_image(photographs()) - wanted).max() <= 1e-5
    encoder.in_bfloat16()  # as on a GPU
    assert np.einsum("nd,nd->n", encoder.encode_image(photographs()), wanted).min() >= 0.99
    assert encoder.dimension == wanted.shape[1]


def test_real_lite0_tells_what_is_in_a_picture(shared_models: Path) -> None:
    """Its vectors are those of timm with the same file, and a picture is nearest to itself at half its size."""
    import timm

    file = shared_models / "tf_efficientnet_lite0.safetensors"
    encoder = load_encoder(f"timm:tf_efficientnet_lite0/{file}")
    pictures = real_pictures(12)
    z = encoder.encode_image(pictures)
    overlay = {"file": str(file)}
    reference = timm.create_model(
        "tf_efficientnet_lite0", pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay
    )
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(reference))
    images = torch.stack([transform(Image.fromarray(decode(p).rgb)) for p in pictures])
    with torch.inference_mode():
        assert np.abs(z - unit(reference.eval()(images))).max() <= 1e-5
    halves = []
    for picture in pictures:
        image, out = Image.open(io.BytesIO(picture)).convert("RGB"), io.BytesIO()
        image.resize((image.width // 2, image.height // 2)).save(out, "PNG")
        halves.append(out.getvalue())
    assert (encoder.encode_image(halves) @ z.T).argmax(1).tolist() == list(range(12))


def test_a_cnn_gives_its_feature_map_too(tmp_path: Path) -> None:
    encoder = load_encoder(f"timm:resnet18/{save_timm('resnet18', tmp_path)}")
    pixels = np.stack([encoder.preprocess(decode(p)) for p in photographs()[:2]])
    regions = encoder.feature_map(pixels)
    assert regions.shape == (2, 512, 7, 7)
    pooled = regions.mean((2, 3))
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    assert np.abs(pooled - encoder.embed_pixels(pixels)).max() <= 1e-5


@pytest.mark.parametrize("architecture", OPEN_CLIP)
def test_an_open_clip_model_gives_what_open_clip_gives(architecture: str, tmp_path: Path) -> None:
    import open_clip

    torch.manual_seed(0)
    reference, _, transform = open_clip.create_model_and_transforms(architecture, pretrained=None)
    file = tmp_path / "open_clip_model.safetensors"
    safetensors.torch.save_file({k: v.contiguous() for k, v in reference.state_dict().items()}, file)
    encoder = load_encoder(f"open_clip:{architecture}/{tmp_path}")
    assert encoder.spec == f"open_clip:{architecture}/{tmp_path}"
    images = torch.stack([transform(Image.fromarray(decode(p).rgb)) for p in photographs()])
    texts = ["a map of the world", "two people talk", "word " * 200]
    with torch.inference_mode():
        image = unit(reference.eval().encode_image(images))
        text = unit(reference.encode_text(open_clip.get_tokenizer(architecture)(texts)))
    assert np.abs(encoder.encode_image(photographs()) - image).max() <= 1e-5
    assert np.abs(encoder.encode_text(texts) - text).max() <= 1e-5
    assert load_encoder(f"open_clip:{architecture}/{file}").fingerprint == encoder.fingerprint
    encoder.in_bfloat16()  # as on a GPU
    assert np.einsum("nd,nd->n", encoder.encode_image(photographs()), image).min() >= 0.99
    assert np.einsum("nd,nd->n", encoder.encode_text(texts), text).min() >= 0.99


def test_preprocessing_that_comes_with_open_clip_weights_is_used_and_hashed(tmp_path: Path) -> None:
    import open_clip

    model = open_clip.create_model("ViT-B-32", pretrained=None)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    plain = load_encoder(f"open_clip:ViT-B-32/{tmp_path}")
    about = {
        "model_cfg": open_clip.get_model_config("ViT-B-32"),
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(about))
    own = load_encoder(f"open_clip:ViT-B-32/{tmp_path}")
    assert own.preprocessing.mean == (0.5, 0.5, 0.5)
    assert own.fingerprint != plain.fingerprint


def test_wrong_names_and_weights_are_said_in_one_sentence(tmp_path: Path) -> None:
    file = save_timm("resnet18", tmp_path)
    for spec, said in [
        ("timm:resnet17", "timm has no model 'resnet17'"),
        (f"timm:vgg11/{file}", r"weights of the model are not in|does not fit vgg11"),
        (f"open_clip:ViT-B-32/{file}", "does not fit ViT-B-32"),
        ("open_clip:ViT-Q/x", "has no architecture 'ViT-Q'"),
        ("open_clip:ViT-B-32", "give weights"),
    ]:
        with pytest.raises(UsageError, match=said):
            load_encoder(spec)
    with pytest.raises(UnreachableError, match="--model open_clip:ViT-B-32//path/to/folder"):
        load_encoder("open_clip:ViT-B-32/laion2b_s34b_b79k")
