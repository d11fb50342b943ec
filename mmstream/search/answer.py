"""One question to an index, as the command line and jobs ask it: the hits as a report, and as a page to look at."""

from __future__ import annotations

import shlex
import time
from typing import Any

from mmstream.errors import UsageError
from mmstream.search.page import write_page
from mmstream.search.searcher import Hit, open_index
from mmstream.storage.files import absolute, read_bytes
from mmstream.telemetry import Report, counted, to_look_at

CAPTION_CHARACTERS = 90


class SearchReport(Report):
    index: str
    query: str
    hits: list[dict[str, Any]]
    version: int
    model: str
    num_vectors: int
    seconds: float
    html: str | None = None

    def title(self) -> str:
        return f"{self.query!r} in {counted(self.num_vectors, 'vector')} of {self.model}, version {self.version}"

    def lines(self) -> list[tuple[str, str]]:
        return [(f"{hit['score']:.3f}  {hit['key']}", _short(hit["caption"])) for hit in self.hits]


def answer(
    index_url: str,
    query: str | None = None,
    *,
    image: str | None = None,
    k: int = 10,
    model: str | None = None,
    html: str | None = None,
) -> SearchReport:
    """Asks with words or with a picture (path or URL); `html` names a page to write with the pictures of the hits.

    Raises:
        UsageError: no index, or neither or both of a query and a picture.
        RefusedError: `model`, or what the index names, is not the encoder that made the index.
    """
    if query is not None and image is not None:
        raise UsageError(f"asked with words ({query!r}) and with a picture ({image}) at once: give one of them.")
    if query is None and image is None:
        raise UsageError('nothing is asked. Give words or --image FILE: mmstream search INDEX "a map of the world".')
    start = time.perf_counter()
    index = open_index(index_url, encoder=model)
    hits: list[Hit] = index.search(query, image=image, k=k)
    asked = query if query is not None else absolute(image or "")
    if html is not None:
        write_page(html, index, hits, asked, picture=read_bytes(asked) if image is not None else None)
    return SearchReport(
        index=index.url,
        query=asked,
        hits=[hit.to_json() for hit in hits],
        version=index.version,
        model=index.manifest.encoder,
        num_vectors=len(index),
        seconds=round(time.perf_counter() - start, 3),
        html=html,
        next=to_look_at(html) if html else [_as_page(index.url, query, image, k)],
    )


def _as_page(url: str, query: str | None, image: str | None, k: int) -> str:
    asked = ["--image", image] if image is not None else [query or ""]
    return shlex.join(["mmstream", "search", url, *asked, "-k", str(k), "--html", "hits.html"])


def _short(caption: str | None) -> str:
    text = caption or "(no caption)"
    return text if len(text) <= CAPTION_CHARACTERS else text[: CAPTION_CHARACTERS - 1] + "…"
