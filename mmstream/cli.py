"""The verbs: each parses its arguments, calls one function of the Python API and prints its report.

With `--json` stdout is exactly one JSON document and everything else goes to stderr. Errors are one sentence and an
exit code (errors.ExitCode); `--debug` adds the traceback. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import contextlib
import functools
import inspect as introspect
import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Generator
from importlib.metadata import version
from typing import Annotated, Any

import typer

from mmstream.errors import ExitCode, MmstreamError


def _example(command: str) -> str:
    return f"Example: [bold]{command}[/]"


app = typer.Typer(
    name="mmstream",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=_example("mmstream demo"),
    context_settings={"help_option_names": ["-h", "--help"]},
)
index_app = typer.Typer(
    help="Build and inspect indexes.", epilog=_example("mmstream index build emb index"), no_args_is_help=True
)
synth_app = typer.Typer(
    help="Write made-up data sets to try things on.",
    epilog=_example("mmstream synth scenes scenes/"),
    no_args_is_help=True,
)
bench_app = typer.Typer(
    help="Measure how fast this machine is.",
    epilog=_example("mmstream bench encode --random ViT-B/32"),
    no_args_is_help=True,
)
app.add_typer(index_app, name="index")
app.add_typer(synth_app, name="synth")
app.add_typer(bench_app, name="bench")


def _print_version(asked: bool) -> None:
    if asked:
        print(f"mmstream {version('mmstream')}")
        raise typer.Exit


@app.callback()
def mmstream(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Buckets of multimodal WebDataset shards in, embeddings, trained models and a searchable index out."""


Sources = Annotated[list[str], typer.Argument(help="Globs, {braces}, folders or URLs of tar shards.", metavar="SRC…")]
Dest = Annotated[str, typer.Argument(help="The embedding set's folder or URL.", metavar="DEST")]
IndexUrl = Annotated[str, typer.Argument(help="The index's folder or URL.", metavar="INDEX")]
Model = Annotated[
    str | None, typer.Option(help="Model spec: hf:, open_clip:, timm:, words:, run: or fake:, see the README.")
]
DEFAULT_MODEL = "hf:openai/clip-vit-base-patch32"  # as encoders.build has it, whose import would delay every --help
Limit = Annotated[int | None, typer.Option(help="Take at most this many samples.", min=1)]

_COMMON = {
    "as_json": Annotated[bool, typer.Option("--json", help="Print one JSON document.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show tracebacks.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")],
}


def verb(parent: typer.Typer, name: str, example: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function as a verb: adds `--json --debug --quiet`, prints its report, maps errors to exit codes."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(**arguments: Any) -> None:
            common = {option: arguments.pop(option) for option in _COMMON}
            raise typer.Exit(_run(lambda: function(**arguments), **common))

        signature = introspect.signature(function, eval_str=True)
        keyword = introspect.Parameter.KEYWORD_ONLY
        extra = [introspect.Parameter(n, keyword, default=False, annotation=a) for n, a in _COMMON.items()]
        parameters = [p.replace(kind=keyword) for p in signature.parameters.values()]
        run.__signature__ = signature.replace(parameters=[*parameters, *extra])  # ty: ignore[missing-attribute]
        run.__annotations__ = {p.name: p.annotation for p in [*parameters, *extra]}
        parent.command(name, epilog=_example(example))(run)
        return function

    return register


def _run(call: Callable[[], Any], as_json: bool, debug: bool, quiet: bool) -> int:
    from mmstream import telemetry

    _Ran.a_verb = True
    telemetry.set_quiet(quiet)
    # Read by Ray when it is imported: a healthy start of many small workers is no news to the person who waits.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started")
    try:
        # What libraries print must not get between the lines of a JSON document.
        with contextlib.redirect_stdout(sys.stderr), _ended_alike():
            report = call()
        print(json.dumps(report.to_json(), indent=1, ensure_ascii=False) if as_json else report)
        return int(getattr(report, "exit_code", ExitCode.DONE))
    except KeyboardInterrupt:
        return _fail("interrupted; what was committed stays, the same command goes on", ExitCode.INTERRUPTED, as_json)
    except MmstreamError as e:
        if debug:
            traceback.print_exc()
        return _fail(str(e), e.exit_code, as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.DONE)
    except Exception as e:
        if debug:
            traceback.print_exc()
        where = "above" if debug else f"in {_kept(traceback.format_exc())}"
        message = f"unexpected {type(e).__name__}: {_gist(str(e))} (the whole traceback is {where})"
        return _fail(message, ExitCode.UNEXPECTED, as_json)


@contextlib.contextmanager
def _ended_alike() -> Generator[None]:
    """A scheduler's SIGTERM ends a verb as a person's Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _gist(text: str) -> str:
    """First and last line: errors of Ray are whole tracebacks of a worker, whose last line is the cause."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " … ".join(line[:300] for line in dict.fromkeys([*lines[:1], *lines[-1:]]))


def _kept(text: str) -> str:
    """Path of a new file with `text`: an hour of work is not to be run again for its traceback."""
    with tempfile.NamedTemporaryFile("w", prefix="mmstream-", suffix=".log", delete=False) as file:
        file.write(text)
    return file.name


def _fail(message: str, code: ExitCode, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": message, "exit_code": int(code)}))
    from mmstream.telemetry import short_hashes

    print(f"mmstream: {short_hashes(message)}", file=sys.stderr)
    return int(code)


@verb(app, "demo", "mmstream demo --dir my-demo")
def demo(
    dir: Annotated[str, typer.Option(help="Where everything is written.")] = "mmstream-demo",
) -> Any:
    """From nothing to an answered query: write scenes, train, embed, index, search, and a report to look at."""
    from mmstream.demo.run import demo

    return demo(dir)


@verb(app, "doctor", "mmstream doctor s3://bucket/folder")
def doctor(url: Annotated[str | None, typer.Argument(help="A source or store to try.")] = None) -> Any:
    """What is here (cores, memory, torch, faiss, GPU, Ray, a URL) and what to do about what is missing."""
    from mmstream.pipelines.doctor import doctor

    return doctor(url)


@verb(synth_app, "scenes", "mmstream synth scenes scenes/ --train 20000")
def synth_scenes(
    dest: Annotated[str, typer.Argument(help="Folder or URL; gets train/*.tar and test/*.tar.", metavar="DEST")],
    train: Annotated[int, typer.Option(help="Scenes to train on.")] = 20_000,
    test: Annotated[int, typer.Option(help="Test scenes of seen colour-shape pairs.")] = 1_000,
    unseen: Annotated[int, typer.Option(help="Test scenes with colour-shape pairs held out from training.")] = 1_000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
) -> Any:
    """Rendered scenes of shapes with captions, as WebDataset tars."""
    from mmstream.demo.scene_shards import write_scenes

    return write_scenes(dest, num_train=train, num_test=test, num_unseen=unseen, seed=seed)


@verb(app, "pack", "mmstream pack data.csv s3://bucket/shards --image file --text caption")
def pack(
    src: Annotated[str, typer.Argument(help="A .csv, .tsv, .jsonl or .parquet, or a folder of files.", metavar="SRC")],
    dest: Annotated[str, typer.Argument(help="A folder or URL for the shards.", metavar="DEST")],
    image: Annotated[str | None, typer.Option(help="Column of pictures: paths, URLs or bytes.")] = None,
    audio: Annotated[str | None, typer.Option(help="Column of sounds.")] = None,
    video: Annotated[str | None, typer.Option(help="Column of videos.")] = None,
    text: Annotated[str | None, typer.Option(help="Column of captions.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of classes; classes.json has their names.")] = None,
    key: Annotated[str | None, typer.Option(help="Column of the samples' names; rows are counted else.")] = None,
    number: Annotated[list[str] | None, typer.Option(help="A column that has to be a number.")] = None,
    label_folders: Annotated[
        bool, typer.Option("--label-folders", help="Of a folder: its folders are the labels.")
    ] = False,
    sha256: Annotated[bool, typer.Option("--sha256", help="Put each picture's SHA-256 into its JSON.")] = False,
    samples_per_shard: Annotated[int, typer.Option(help="At most so many samples in a shard.", min=1)] = 1_000,
    shard_bytes: Annotated[int, typer.Option(help="At most so many bytes in a shard.", min=1)] = 256 << 20,
    limit: Annotated[int | None, typer.Option(help="Take at most this many rows.", min=1)] = None,
    max_rejects: Annotated[str, typer.Option(help="Share of rows that may be set aside, as 5% or 0.05.")] = "5%",
) -> Any:
    """Pack a table or a folder into WebDataset shards; columns are told by their names, or by options."""
    from mmstream.pipelines.pack import pack

    return pack(
        src,
        dest,
        columns={"image": image, "audio": audio, "video": video, "text": text, "label": label, "key": key},
        numbers=number or (),
        label_folders=label_folders,
        sha256=sha256,
        samples_per_shard=samples_per_shard,
        shard_bytes=shard_bytes,
        limit=limit,
        max_rejects=_share(max_rejects),
    )


@verb(app, "inspect", "mmstream inspect 's3://bucket/{00000..00041}.tar'")
def inspect(
    src: Sources,
    catalog: Annotated[str | None, typer.Option(help="Write the frozen catalog to this new .parquet file.")] = None,
    checksums: Annotated[bool, typer.Option("--checksums", help="Put the SHA-256 of every shard into it.")] = False,
) -> Any:
    """What is in these shards: how many, how large, which members, a few samples, damage at the start."""
    from mmstream.pipelines.inspect import inspect

    return inspect(src, catalog_to=catalog, checksums=checksums)


@verb(app, "stats", "mmstream stats 's3://bucket/*.tar' s3://bucket/statistics.json")
def stats(
    src_dest: Annotated[list[str], typer.Argument(help="Sources, then the .json file to write.", metavar="SRC… DEST")],
    of: Annotated[list[str] | None, typer.Option(help="image, audio, numbers or captions; all by default.")] = None,
    field: Annotated[
        list[str] | None, typer.Option(help="A number in the JSON, as width or exif.iso; all by default.")
    ] = None,
    limit: Limit = None,
    max_rejects: Annotated[
        str,
        typer.Option(
            help="Share of samples that may be set aside, as 5% or 0.05; judged from 100 samples on, 0 always."
        ),
    ] = "5%",
) -> Any:
    """Mean, std, extremes, quantiles, missing values: of channels, mel bands, JSON numbers, caption lengths."""
    from mmstream.errors import UsageError
    from mmstream.pipelines.statistics import stats

    *src, dest = src_dest
    if not src:
        raise UsageError("stats takes at least one source and a destination: mmstream stats SRC… statistics.json.")
    return stats(src, dest, of=of or (), fields=field or (), limit=limit, max_rejects=_share(max_rejects))


@verb(app, "embed", "mmstream embed 's3://bucket/*.tar' s3://bucket/emb --model hf:openai/clip-vit-base-patch32")
def embed(
    src_dest: Annotated[list[str], typer.Argument(help="Sources, then the destination.", metavar="SRC… DEST")],
    model: Annotated[
        str,
        typer.Option(
            help="Model spec: hf:, open_clip:, timm:, words:, voice:, run:, fake:, frames:, fused:; see the README."
        ),
    ] = DEFAULT_MODEL,
    limit: Limit = None,
    max_rejects: Annotated[
        str,
        typer.Option(
            help="Share of samples that may be set aside, as 5% or 0.05; judged from 100 samples on, 0 always."
        ),
    ] = "5%",
    field: Annotated[list[str] | None, typer.Option(help="A JSON field to keep beside the vectors.")] = None,
    filter: Annotated[
        list[str] | None,
        typer.Option(
            help="Which samples are wanted, as min_side=64: min_ or max_ and characters, words, side, pixels, aspect "
            "or seconds; or languages=en,de."
        ),
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Take in new shards of the source; SRC has to name the old ones, too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how much, how fast, how long.")] = False,
) -> Any:
    """Embed shards into an embedding set; the same command goes on after any kill."""
    from mmstream.config import overridden
    from mmstream.errors import UsageError
    from mmstream.media.filters import Filters

    *src, dest = src_dest
    if not src:
        raise UsageError("embed takes at least one source and a destination: mmstream embed SRC… DEST.")
    budget = _share(max_rejects)
    limits = overridden({}, filter or (), option="--filter", known=list(Filters.model_fields))
    chosen = {"fields": field or (), "filters": Filters.checked(limits, where="--filter")}
    if dry_run:
        from mmstream.pipelines.dry_run import dry_run as look

        return look(src, dest, model, **chosen, limit=limit, max_rejects=budget, append=append)
    from mmstream.pipelines.embed import embed

    return embed(src, dest, model, **chosen, limit=limit, max_rejects=budget, append=append)


def _share(text: str) -> float:
    from mmstream.errors import UsageError

    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UsageError(f"--max-rejects {text}: give a share from 0% to 100%, as 5% or 0.05.")
    return share


@verb(app, "audit", "mmstream audit s3://bucket/emb --source")
def audit(
    dest: Dest,
    source: Annotated[bool, typer.Option("--source", help="Also count the shards again, by their headers.")] = False,
) -> Any:
    """Check an embedding set: records, row counts and hashes agree, nothing is missing or doubled."""
    from mmstream.embeddings.audit import audit

    return audit(dest, source=source)


@verb(app, "repair", "mmstream repair s3://bucket/emb")
def repair(
    dest: Dest,
    source: Annotated[
        list[str] | None,
        typer.Option(help="Shards as embed was given them; needed where the catalog is lost.", metavar="SRC"),
    ] = None,
) -> Any:
    """Make anew what is lost or damaged in an embedding set, from its source, and just that."""
    from mmstream.pipelines.repair import repair

    return repair(dest, source or ())


@verb(app, "gc", "mmstream gc s3://bucket/emb --dry-run")
def gc(dest: Dest, dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False) -> Any:
    """Remove what killed writers left: objects that no record refers to and temporaries, older than a day."""
    from mmstream.embeddings.gc import gc

    return gc(dest, dry_run=dry_run)


@verb(app, "rejects", "mmstream rejects s3://bucket/emb --html rejects.html")
def rejects(
    dest: Dest,
    reason: Annotated[str | None, typer.Option(help="Show rejects of this reason only.")] = None,
    limit: Annotated[int, typer.Option(help="Show at most so many of each reason.", min=0)] = 12,
    html: Annotated[str | None, typer.Option(help="Also write a page with what can be shown.", metavar="FILE")] = None,
    replay: Annotated[bool, typer.Option("--replay", help="Try them again: the code or source was mended.")] = False,
) -> Any:
    """What was set aside and why: counts by reason, the first ones of each, and a page to look at."""
    if replay:
        from mmstream.pipelines.repair import replay as again

        return again(dest, [reason] if reason else None)
    from mmstream.pipelines.rejects import rejects

    return rejects(dest, reason=reason, limit=limit, html=html)


@verb(app, "export", "mmstream export s3://bucket/emb s3://bucket/clip --format clip-retrieval")
def export(
    dest: Dest,
    out: Annotated[
        str, typer.Argument(help="A folder or URL; parts of another export there are refused.", metavar="OUT")
    ],
    format: Annotated[str, typer.Option(help="What for: clip-retrieval (autofaiss and embedding_reader too).")],
    of: Annotated[str | None, typer.Option(help="image or text; both where there are both.")] = None,
    rows_per_file: Annotated[int, typer.Option(help="At most so many rows in a file.", min=1)] = 1_000_000,
) -> Any:
    """Write an embedding set in the form of another tool: vectors as .npy, the rest as Parquet, rows aligned."""
    from mmstream.embeddings.export import export

    return export(dest, out, format=format, of=of, rows_per_file=rows_per_file)


@verb(app, "train", "mmstream train jobs/recipes/pairs.yaml --out runs/pairs 'data.train=s3://bucket/*.tar'")
def train(
    recipe: Annotated[str, typer.Argument(help="A YAML recipe.", metavar="RECIPE")],
    out: Annotated[str, typer.Option(help="The run's folder or URL.", metavar="RUN")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Keys to change.", metavar="[key=value …]")] = None,
    limit: Limit = None,
) -> Any:
    """Train a model from a recipe; the same command resumes the run."""
    from mmstream.pipelines.fit import train

    return train(recipe, out=out, overrides=overrides or [], limit=limit)


@verb(app, "eval", "mmstream eval run:runs/pairs 'data/test/*.tar'")
def evaluate(
    what: Annotated[str, typer.Argument(help="A model spec, or an embedding set.", metavar="SPEC|DEST")],
    src: Annotated[list[str] | None, typer.Argument(help="Shards, where a model is given.", metavar="[SRC…]")] = None,
    limit: Limit = None,
) -> Any:
    """Retrieval both ways (recall@1, 5, 10) with N, chance and ceiling."""
    from mmstream.pipelines.evaluate import evaluate

    return evaluate(what, src or [], limit=limit)


@verb(index_app, "build", "mmstream index build s3://bucket/emb s3://bucket/index")
def index_build(
    emb: Annotated[str, typer.Argument(help="A finished embedding set.", metavar="EMB")],
    index: IndexUrl,
    of: Annotated[str | None, typer.Option(help="image or text; image where there is one.")] = None,
) -> Any:
    """Build an index from an embedding set and publish it as the next version."""
    from mmstream.index.build import build_index

    return build_index(emb, index, of=of)


@verb(index_app, "info", "mmstream index info s3://bucket/index")
def index_info(index: IndexUrl) -> Any:
    """What an index holds: version, vectors, model, files."""
    from mmstream.index.store import open_version

    return open_version(index).info()


@verb(app, "search", 'mmstream search s3://bucket/index "a map of the world" -k 5')
def search(
    index: IndexUrl,
    query: Annotated[str | None, typer.Argument(help="Words to search for.", metavar="[QUERY]")] = None,
    image: Annotated[str | None, typer.Option(help="A picture to search for instead.", metavar="FILE")] = None,
    k: Annotated[int, typer.Option("-k", help="How many hits.", min=1)] = 10,
    model: Model = None,
    html: Annotated[str | None, typer.Option(help="Also write a page with the pictures.", metavar="FILE")] = None,
) -> Any:
    """Ask an index with words or a picture. The model is the one that made the index; no --model is needed."""
    from mmstream.search.answer import answer

    return answer(index, query, image=image, k=k, model=model, html=html)


@verb(bench_app, "encode", "mmstream bench encode --random ViT-B/32")
def bench_encode(
    model: Model = None,
    random: Annotated[str | None, typer.Option(help="A published size with random weights, as ViT-B/32.")] = None,
    of: Annotated[str | None, typer.Option(help="image, text or audio; the first that the model gives.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    decode: Annotated[str, typer.Option(help="cpu, or device: decode and resize on the GPU.")] = "cpu",
    batch: Annotated[int | None, typer.Option(help="Rows of a micro-batch.", min=1)] = None,
    seconds: Annotated[float, typer.Option(help="About how long to measure.", min=0)] = 30.0,
    size: Annotated[int, typer.Option(help="Edge of the made JPEGs, in pixels.", min=16)] = 256,
    threads: Annotated[int | None, typer.Option(help="That decode; all cores by default.", min=1)] = None,
) -> Any:
    """How fast an encoder makes vectors of compressed pictures, texts or sounds, and what its device waits for."""
    from mmstream.bench.encode import bench_encode

    measured = {"device": device, "decode": decode, "batch": batch, "seconds": seconds, "size": size}
    return bench_encode(model, random=random, of=of, threads=threads, **measured)


def main(argv: list[str] | None = None) -> None:
    """Runs one command; leaves through SystemExit with its exit code."""
    arguments = argv if argv is not None else sys.argv[1:]
    try:
        app(args=arguments, prog_name="mmstream")
    except SystemExit as e:
        if e.code == ExitCode.USAGE and "--json" in arguments and not _Ran.a_verb:
            # Typer has told the person on stderr what is wrong; a program still gets its one document.
            print(json.dumps({"error": "wrong arguments; stderr says which", "exit_code": int(ExitCode.USAGE)}))
        raise


class _Ran:
    """Whether a verb was reached, and so has printed its document."""

    a_verb = False
