"""Lets the torchvision of PyPI be imported beside a CPU build of torch that its operators were not built for.

For tests of the extra `vision` alone, on PYTHONPATH so that it comes first in every process, Ray's workers too.
torchvision registers shape functions for two of its operators as it is imported, and fails where these do not exist:
they are declared just before, if its own library has not done so. Nothing here calls them, and mmstream never needs
this file.
"""

import sys


class _DeclareOperators:
    """An import hook that acts when torchvision comes to its shape functions, and finds nothing itself."""

    kept: list = []  # noqa: RUF012  # the operators live as long as their Library objects

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torchvision._meta_registrations":
            import torch

            for operator in ("nms", "qnms"):
                if not hasattr(torch.ops.torchvision, operator):
                    library = torch.library.Library("torchvision", "FRAGMENT")
                    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                    cls.kept.append(library)


sys.meta_path.insert(0, _DeclareOperators)
