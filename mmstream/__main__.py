"""`mmstream` and `python -m mmstream`."""

import atexit
import contextlib
import os
import sys


def main() -> None:
    """Runs one command and leaves with its exit code.

    What was registered to run at exit runs (Ray is shut down), and then the process ends at once: native threads of
    Arrow, FAISS and others that are still on their way out must not turn a finished command into an abort.
    """
    from mmstream.cli import main as run

    try:
        run()
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    else:
        code = 0
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
