"""Hits become one HTML file that stands alone: pictures inline, no script, no link, every text escaped.

Captions, keys and pictures are strangers' data. Pictures are decoded and encoded anew, and a content security policy
forbids the page to load or run anything.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape

from mmstream.errors import MmstreamError, Rejected
from mmstream.search.pictures import read_picture, thumbnail
from mmstream.search.searcher import Hit, Index
from mmstream.storage.files import write_bytes

READ_THREADS = 8
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1rem 4rem; color: #1c2430; background: #fff;
  font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; overflow-wrap: anywhere; } p.about { color: #5a6472; margin: 0 0 1.5rem; }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(11rem, 100%), 1fr)); }
li { border: 1px solid #dfe3e8; border-radius: .5rem; overflow: hidden; break-inside: avoid; }
.picture { height: 11rem; background: #f4f6f8; display: flex; align-items: center; justify-content: center; }
.picture img { max-width: 100%; max-height: 100%; } .picture span { color: #5a6472; font-size: .8rem; padding: 1rem; }
.asked img { max-width: 100%; border-radius: .5rem; margin: .6rem 0; }
.score { font-variant-numeric: tabular-nums; font-weight: 600; } .key { color: #5a6472; font-size: .8rem; }
li div.text { padding: .6rem .8rem .8rem; } li p { margin: .2rem 0 0; font-size: .9rem; overflow-wrap: anywhere; }
"""


def write_page(dest: str, index: Index, hits: Sequence[Hit], query: str, *, picture: bytes | None = None) -> None:
    """Writes the page to a path or URL. A picture of a hit that cannot be read is replaced by the reason.

    Args:
        query: what was asked, as a person would say it; the title of the page.
        picture: what was asked with, where that was a picture: it stands above the hits.

    Raises:
        Rejected: `picture` cannot be decoded.
    """
    asked = inline_image(thumbnail(picture), query) if picture is not None else ""
    pictures = pictures_of(index, hits)
    about = (
        f"{len(hits)} of {len(index):,} {index.info.of} vectors, nearest first · {index.url}, version {index.version}"
    )
    write_bytes(dest, render(query, about, hits, pictures, asked).encode())


def pictures_of(index: Index, hits: Sequence[Hit]) -> list[str]:
    """HTML of each hit's picture, or of the reason why it cannot be shown."""
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(lambda hit: _inline(index, hit), hits))


def _inline(index: Index, hit: Hit) -> str:
    try:
        return inline_image(thumbnail(read_picture(index, hit)), hit.caption or hit.key or "")
    except (MmstreamError, Rejected) as e:
        return f"<span>{escape(str(e))}</span>"


def inline_image(jpeg: bytes, description: str) -> str:
    """An `img` element that holds its own bytes."""
    data = base64.b64encode(jpeg).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(description)}">'


def render(title: str, about: str, hits: Sequence[Hit], pictures: Sequence[str], asked: str = "") -> str:
    """The whole page. `pictures` is HTML, one element per hit, `asked` the query's own; all else is plain text."""
    query = f'<div class="asked">{asked}</div>' if asked else ""
    cards = "\n".join(_card(hit, picture) for hit, picture in zip(hits, pictures, strict=True))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title><style>{_STYLE}</style></head>
<body><h1 dir="auto">{escape(title)}</h1>{query}<p class="about">{escape(about)}</p>
<ol>
{cards}
</ol></body></html>
"""


def _card(hit: Hit, picture: str) -> str:
    return (
        f'<li><div class="picture">{picture}</div><div class="text"><span class="score">{hit.score:.3f}</span> '
        f'<span class="key">{escape(hit.key or "")}</span><p dir="auto">{escape(hit.caption or "")}</p></div></li>'
    )
