"""Rejects become one HTML file that stands alone: a card for each, with its reason, its files and what can be shown.

Everything here is a stranger's and was found bad. A picture is shown only as a small JPEG made anew from pixels that
our own decoder gave, and one that once crashed or stalled a decoder is not decoded at all; otherwise the first bytes
stand as hexadecimal digits. Every text is escaped, and a content security policy forbids the page to load or run
anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from html import escape

from pydantic import BaseModel

from mmstream.embeddings.reader import EmbeddingSet
from mmstream.errors import MmstreamError, Reason, Rejected
from mmstream.search.page import POLICY, inline_image
from mmstream.search.pictures import thumbnail
from mmstream.shards.group import COLUMN_OF, is_macos_leftover, split_name
from mmstream.shards.tar import ByteSource, Member, TarDamage, members
from mmstream.storage.compressed import open_reader, read_part
from mmstream.storage.files import write_bytes

READ_THREADS = 8
HEAD_BYTES = 64
PICTURE_LIMIT = 32 << 20
MAX_FILES = 12

_BLOCK_BYTES = 1 << 18  # of the shard are fetched at once: a sample is small and the next one is elsewhere
_NEVER_DECODED = (Reason.DECODER_CRASH, Reason.DECODE_TIMEOUT, Reason.TOO_MANY_PIXELS)
_CULPRIT: Mapping[str, str] = {
    Reason.CAPTION: "text",
    Reason.METADATA: "json",
}  # whose first bytes tell more than the picture's
_MEANING = {
    "not_tar": "the shard is no tar at all",
    "compression": "the shard cannot be unpacked to its end",
    "tar_header": "a header of the shard is damaged; what lies behind it cannot be known",
    "tar_truncated": "the shard ends too early",
    "tar_trailing": "there is data behind the shard's end mark",
    "unreadable": "the shard is gone",
    "source_changed": "the shard is not the one of the catalog",
    "checksum": "the bytes are not those of the checksum",
    "member_too_large": "a file is over the size limit",
    "unsafe_member": "a link, a device, or a path that climbs out of the archive",
    "missing_member": "nothing is there that the model takes",
    "duplicate_key": "a key, or one kind of file of it, comes twice",
    "not_image": "no picture",
    "image_broken": "the picture cannot be decoded",
    "image_truncated": "the picture was cut short",
    "too_many_pixels": "the picture is over the pixel limit",
    "format": "a picture of a format that is not read",
    "decode_timeout": "the decoder did not come to an end",
    "decoder_crash": "the decoder crashed",
    "audio": "the sound cannot be decoded",
    "video": "the video cannot be decoded",
    "caption": "the caption is no text, or far too long",
    "metadata": "the JSON does not parse, or a field of it is no number",
    "filtered": "a filter of the run does not want it",
    "bad_embedding": "the model gave a vector that is not finite",
}


class Reject(BaseModel, frozen=True):
    """A row of schema.REJECT, and its shard's URL. `key` is null where it stands for the rest of a damaged shard."""

    url: str
    shard: int
    row: int
    key: str | None
    member: str | None
    offset: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Evidence:
    """What the shard holds at a reject's place: (name, bytes) of its files, a picture as JPEG, first bytes of `head_of`
    (a file, or the shard from where it broke), and why there is none of it."""

    files: tuple[tuple[str, int], ...] = ()
    jpeg: bytes | None = None
    head: bytes = b""
    head_of: str = ""
    problem: str = ""


def write_page(
    dest: str, emb: EmbeddingSet, heading: str, rejects: Sequence[Reject], counts: Mapping[str, int]
) -> None:
    """Writes the page to a path or URL.

    Args:
        rejects: those that are shown, a card each.
        counts: by reason, of all there are.
    """
    sources = {e["shard"]: (e["bytes"], e["etag"]) for e in emb.catalog.to_pylist()}
    with ThreadPoolExecutor(READ_THREADS) as pool:
        evidence = list(pool.map(lambda r: gather(r, *sources[r.shard]), rejects))
    write_bytes(dest, render(heading, emb.url, list(zip(rejects, evidence, strict=True)), counts).encode())


def gather(reject: Reject, source_bytes: int, source_etag: str) -> Evidence:
    """Reads the sample's few bytes back from its shard, if that is still the one that was embedded."""
    try:
        reader = open_reader(reject.url, bytes=source_bytes, etag=source_etag, block_bytes=_BLOCK_BYTES, checked=False)
        with reader:
            reader.skip(reject.offset)
            if reject.key is None:
                return Evidence(head=reader.read(HEAD_BYTES), head_of=f"the shard from byte {reject.offset:,} on")
            return _of_sample(reject, _files(reader, reject.key))
    except (MmstreamError, Rejected) as e:
        return Evidence(problem=str(e))


def _files(reader: ByteSource, key: str) -> list[Member]:
    """The sample's files as far as they are whole, pictures with their data."""
    found: list[Member] = []
    with suppress(TarDamage):  # the shard's damage has a card of its own
        wants = lambda name, size: COLUMN_OF.get(split_name(name)[1]) == "image"  # noqa: E731
        for member in members(reader, member_limit=PICTURE_LIMIT, want=wants):
            if is_macos_leftover(member.name):
                continue
            if split_name(member.name)[0] != key or len(found) == MAX_FILES:
                break
            found.append(member)
    return found


def _of_sample(reject: Reject, files: list[Member]) -> Evidence:
    if not files:
        return Evidence(problem="its files cannot be found at their place in the shard")
    by_column = {COLUMN_OF.get(split_name(m.name)[1]): m for m in reversed(files)}  # the first of each kind
    picture = by_column.get("image")
    jpeg = None
    if picture and picture.data and reject.reason not in _NEVER_DECODED:
        with suppress(Rejected):  # most are here for that; their first bytes are shown
            jpeg = thumbnail(picture.data)
    culprit = by_column.get(_CULPRIT.get(reject.reason, "image")) or files[0]
    head = b""
    if culprit.size and culprit.problem != Reason.UNSAFE_MEMBER and (jpeg is None or reject.reason in _CULPRIT):
        head = read_part(reject.url, culprit.data_offset, min(culprit.size, HEAD_BYTES))
    return Evidence(tuple((m.name, m.size) for m in files), jpeg, head, culprit.name)


def render(heading: str, about: str, cards: Sequence[tuple[Reject, Evidence]], counts: Mapping[str, int]) -> str:
    """The whole page, grouped by reason, the most frequent first. All that is given is plain text."""
    reasons = sorted(counts, key=lambda r: (-counts[r], r))
    most = max(counts.values(), default=1)
    summary = "\n".join(_bar(r, counts[r], most) for r in reasons)
    sections = "\n".join(_section(r, counts[r], [c for c in cards if c[0].reason == r]) for r in reasons)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(heading)}</title><style>{_STYLE}</style></head>
<body><header><p class="eyebrow">mmstream rejects</p><h1>{escape(heading)}</h1>
<p class="about">{escape(about)}</p></header>
<nav>{summary}</nav>
{sections}
</body></html>
"""


def _bar(reason: str, count: int, most: int) -> str:
    return (
        f'<a href="#{escape(reason)}"><span class="reason">{escape(reason)}</span>'
        f'<span class="track"><i style="width:{100 * count / most:.1f}%"></i></span><b>{count:,}</b></a>'
    )


def _section(reason: str, count: int, cards: Sequence[tuple[Reject, Evidence]]) -> str:
    shown = f"{count:,}" if len(cards) == count else f"the first {len(cards):,} of {count:,}"
    items = "\n".join(_card(r, e) for r, e in cards)
    return f"""<section id="{escape(reason)}"><h2>{escape(reason)} <small>{shown}</small></h2>
<p class="about">{escape(_MEANING.get(reason, ""))}</p>
<ol>
{items}
</ol></section>"""


def _card(reject: Reject, evidence: Evidence) -> str:
    is_rest = reject.key is None
    name = f"from row {reject.row:,} on" if is_rest else reject.key or ""
    shard = reject.url.rsplit("/", 1)[-1]
    byte = f"byte\u00a0{reject.offset:,}"
    place = " · ".join([shard, *([] if is_rest else [f"row\u00a0{reject.row:,}"]), byte])
    files = "".join(f"<li><bdi>{escape(n)}</bdi> <span>{size:,} B</span></li>" for n, size in evidence.files)
    return f"""<li class="{"rest" if is_rest else "sample"}">{_shown(evidence)}<div class="text">
<h3 dir="auto">{escape(name)}</h3><p class="detail" dir="auto">{escape(reject.detail)}</p>
<p class="place" title="{escape(reject.url)}">{escape(place)}</p>{f"<ul>{files}</ul>" if files else ""}
</div></li>"""


def _shown(evidence: Evidence) -> str:
    parts = []
    if evidence.jpeg:
        parts.append(f'<div class="picture">{inline_image(evidence.jpeg, "")}</div>')
    if evidence.head:
        about = f'<figcaption dir="auto">{escape(evidence.head_of)}</figcaption>'
        parts.append(f'<figure class="head">{about}<pre>{escape(hexdump(evidence.head))}</pre></figure>')
    if not parts:
        parts.append(f'<p class="nothing">{escape(evidence.problem or "no bytes to show")}</p>')
    return "".join(parts)


def hexdump(data: bytes, width: int = 8) -> str:
    """Lines of `width` bytes, as digits and, where they are printable ASCII, as letters."""
    lines = []
    for start in range(0, len(data), width):
        piece = data[start : start + width]
        letters = "".join(chr(b) if 32 <= b < 127 else "·" for b in piece)
        lines.append(f"{piece.hex(' '):<{3 * width - 1}}  {letters}")
    return "\n".join(lines)


_STYLE = """
:root { --ink: #1c2430; --muted: #5a6472; --line: #dfe3e8; --panel: #f4f6f8; --blue: #0072b2; --orange: #d55e00; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 2.5rem 1.25rem 4rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums; }
h1 { font-size: clamp(1.5rem, 4vw, 2.2rem); line-height: 1.2; letter-spacing: -.02em; margin: .1rem 0 .3rem; }
.eyebrow { color: var(--blue); font-weight: 600; margin: 0; }
.about { color: var(--muted); margin: 0; overflow-wrap: anywhere; }
nav { display: grid; gap: .15rem; margin: 1.8rem 0 0; max-width: 44rem; }
nav a { display: grid; grid-template-columns: 10.5rem 1fr 4rem; gap: .8rem; align-items: center; padding: .25rem .5rem;
  border-radius: .35rem; color: inherit; text-decoration: none; } nav a:hover { background: var(--panel); }
nav b { text-align: right; } .track { height: .8rem; background: var(--panel); border-radius: 3px; }
.track i { display: block; height: 100%; min-width: 3px; background: var(--blue); border-radius: 3px; }
section { margin-top: 3rem; } h2 { font-size: 1.3rem; margin: 0; letter-spacing: -.01em; }
h2 small { color: var(--muted); font-size: .9rem; font-weight: 400; margin-left: .4rem; }
ol { list-style: none; margin: 1rem 0 0; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); }
ol > li { border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; break-inside: avoid; display: flex;
  flex-direction: column; } li.rest { border-top: 3px solid var(--orange); }
.picture { height: 11rem; background: var(--panel); display: flex; align-items: center; justify-content: center; }
.picture img { max-width: 100%; max-height: 100%; }
.nothing { margin: 0; background: var(--panel); color: var(--muted); font-size: .85rem; padding: .7rem 1rem;
  overflow-wrap: anywhere; }
figure.head { margin: 0; background: var(--ink); color: #e8edf3; padding: .7rem .9rem; min-height: 11rem; }
.picture + figure.head { min-height: 0; }
figcaption { color: #9fb0c3; font-size: .75rem; margin-bottom: .3rem; overflow-wrap: anywhere; }
pre { margin: 0; overflow-x: auto;
  font: .74rem/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
.text { padding: .8rem 1rem 1rem; }
h3 { font-size: 1rem; line-height: 1.35; margin: 0; overflow-wrap: anywhere; display: -webkit-box;
  -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; }
.detail { margin: .25rem 0 .5rem; font-size: .92rem; overflow-wrap: anywhere; }
.place { color: var(--muted); font-size: .8rem; margin: 0; overflow-wrap: anywhere; }
.text ul { list-style: none; margin: .5rem 0 0; padding: .5rem 0 0; border-top: 1px solid var(--line); }
.text ul li { display: flex; justify-content: space-between; gap: .8rem; color: var(--muted); font-size: .8rem;
  overflow-wrap: anywhere; } .text ul span { white-space: nowrap; }
.text ul bdi { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden; }
@media (max-width: 40rem) { nav a { grid-template-columns: 8.5rem 1fr 3rem; font-size: .9rem; } }
@media print { body { padding: 0; font-size: 10pt; } figure.head { color: var(--ink); background: var(--panel); } }
"""
