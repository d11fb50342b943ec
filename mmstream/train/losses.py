"""Losses over the whole batch of all ranks, whose averaged gradients are those of one large batch, exactly.

Legend: W ranks, B rows of each rank, N = W * B, D dimension.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from mmstream.train.gather import all_gather


def info_nce(image_BD: Tensor, text_BD: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross-entropy of each row against the columns of all ranks (InfoNCE, as CLIP has it).

    L = ½ · (CE(s · X Yᵀ, i) + CE(s · Y Xᵀ, i)) over N = W * B pairs of unit vectors; this rank's value is the mean
    over its own B rows, and the mean over ranks is L. Logits are float32 or finer. By chance L = ln N.

    Args:
        image_BD, text_BD: unit vectors of this rank; every rank has the same B (see `gather.check_equal_rows`).
        scale: the logit scale s, a scalar.
    """
    image_BD, text_BD = _fine(image_BD), _fine(text_BD)
    image_ND, text_ND = all_gather(torch.cat([image_BD, text_BD], dim=1)).split(image_BD.shape[1], dim=1)
    rank = dist.get_rank() if dist.is_initialized() else 0
    own_B = torch.arange(len(image_BD), device=image_BD.device) + rank * len(image_BD)
    with torch.autocast(image_BD.device.type, enabled=False):
        from_image = F.cross_entropy(scale * image_BD @ text_ND.T, own_B)
        from_text = F.cross_entropy(scale * text_BD @ image_ND.T, own_B)
    return (from_image + from_text) / 2


def _fine(x_BD: Tensor) -> Tensor:
    return x_BD.float() if x_BD.dtype in (torch.float16, torch.bfloat16) else x_BD
