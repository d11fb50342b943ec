"""From shards to a published index in one job: [train →] embed → index build.

python jobs/pipeline.py SRC… EMB INDEX [--model SPEC | --recipe RECIPE --run RUN] [--limit N]

With a recipe its model is trained first and then embeds. Every step is the command of that name, so the same line run
again goes on where it stopped; the first step that fails ends the job with its exit code.
"""

import argparse

from mmstream.cli import main


def step(*arguments: str) -> None:
    try:
        main(list(arguments))
    except SystemExit as end:
        if end.code:
            raise


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="+", metavar="SRC… EMB INDEX")
    parser.add_argument("--model", help="model spec, as for mmstream embed")
    parser.add_argument("--recipe", help="train this first, into --run")
    parser.add_argument("--run", help="the run's folder or URL")
    parser.add_argument("--limit", help="embed at most this many samples")
    given = parser.parse_args()
    if len(given.places) < 3 or bool(given.recipe) != bool(given.run) or (given.recipe and given.model):
        parser.error("give SRC… EMB INDEX, and either --model or both --recipe and --run")
    *sources, embeddings, index = given.places
    if given.recipe:
        step("train", given.recipe, "--out", given.run)
    model = f"run:{given.run}" if given.recipe else given.model
    options = {"--model": model, "--limit": given.limit}
    step("embed", *sources, embeddings, *(word for o, v in options.items() if v for word in (o, v)))
    step("index", "build", embeddings, index)
