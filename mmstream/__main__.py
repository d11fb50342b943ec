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
    _flush()
    # What Ray's native code writes while it shuts down, of tasks that it would repeat, must not follow our JSON.
    os.dup2(2, 1)
    atexit._run_exitfuncs()
    _flush()
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()


if __name__ == "__main__":
    main()
