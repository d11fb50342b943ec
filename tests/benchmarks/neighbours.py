"""Do nearest neighbours look right? `python tests/benchmarks/neighbours.py INDEX PAGE.html [--field book]`.

A page that stands alone: a sample in each row, drawn at random, and beside it the nearest others of the index, with
their cosines. With a field that was kept beside the vectors (`embed --field book`) it also says how many samples have
a nearest neighbour of the same value, and how many would by chance.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Sequence
from html import escape

from mmstream.search.page import POLICY, pictures_of
from mmstream.search.searcher import Hit, Index, open_index
from mmstream.storage.files import write_bytes

_STYLE = """
body { margin: 2rem; font: 14px/1.35 system-ui, sans-serif; color: #1c2430; } td { vertical-align: top; width: 11rem; }
td:first-child { background: #eef3fa; } img { max-width: 10.5rem; max-height: 8rem; display: block; margin: 0 auto; }
h1 { font-size: 1.2rem; overflow-wrap: anywhere; }
p { margin: .2rem; max-height: 5.4em; overflow: hidden; overflow-wrap: anywhere; } .score { font-weight: 600; }
"""


def neighbours(index: Index, id: int, k: int) -> list[Hit]:
    """The sample itself, then its k nearest others."""
    hits = index.search(id=id, k=k + 1)
    own = next((h for h in hits if h.id == id), None)
    if own is None:  # k + 1 others are equal to it
        raise SystemExit(f"id {id} does not find itself among {k + 1}: the index holds many equal vectors.")
    return [own, *(h for h in hits if h.id != id)][: k + 1]


def agreement(index: Index, ids: Sequence[int], field: str) -> str:
    """How many nearest neighbours have the same value of `field`, and how many of a random pair would."""
    pairs = [
        (own.extra.get(field), nearest.extra.get(field)) for own, nearest in (neighbours(index, i, 1) for i in ids)
    ]
    counts = Counter(own for own, _ in pairs)
    chance = sum(n * (n - 1) for n in counts.values()) / (len(pairs) * (len(pairs) - 1))
    same = sum(own == nearest for own, nearest in pairs) / len(pairs)
    shares = f"{100 * same:.0f} % of {len(pairs)}, by chance {100 * chance:.0f} %"
    return f"the nearest other sample has the same {field}: {shares}"


def render(title: str, about: str, rows: Sequence[Sequence[tuple[Hit, str]]]) -> str:
    cells = "\n".join("<tr>" + "".join(_cell(hit, picture) for hit, picture in row) + "</tr>" for row in rows)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title><style>{_STYLE}</style></head>
<body><h1>{escape(title)}</h1><p>{escape(about)}</p><table>
{cells}
</table></body></html>
"""


def _cell(hit: Hit, picture: str) -> str:
    return f'<td>{picture}<p><span class="score">{hit.score:.3f}</span> {escape((hit.caption or "")[:160])}</p></td>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("index")
    parser.add_argument("page")
    parser.add_argument("--queries", type=int, default=12)
    parser.add_argument("--neighbours", type=int, default=6)
    parser.add_argument("--field")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    index = open_index(options.index)
    ids = index.ids.tolist()
    chosen = random.Random(options.seed).sample(ids, min(options.queries, len(ids)))
    rows = [neighbours(index, i, options.neighbours) for i in chosen]
    has_pictures = any(hit.image_offset is not None for row in rows for hit in row)
    pictures = [pictures_of(index, row) if has_pictures else [""] * len(row) for row in rows]
    about = agreement(index, ids, options.field) if options.field else ""
    title = f"Nearest neighbours among {len(index):,} {index.info.of} vectors of {index.manifest.encoder}"
    shown = render(title, about, [list(zip(*row, strict=True)) for row in zip(rows, pictures, strict=True)])
    write_bytes(options.page, shown.encode())
    print(f"{len(rows)} samples and their neighbours: {options.page}")
    print(about)


if __name__ == "__main__":
    main()
