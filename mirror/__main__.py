"""The entry point for `python -m mirror` and for the program `mirror`."""

import signal

# This runs before the other imports, which take time. Outside a `Signals` block there is nothing to clean up, so SIGINT
# ends the process without a traceback. If the parent process set SIGINT to be ignored, it stays ignored.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import gc
import sys
from typing import NoReturn

from mirror.cli import main
from mirror.util.memory import limit_heaps


def entry() -> NoReturn:
    """Run the command line, and exit with its exit code."""
    limit_heaps()  # must precede the start of any thread
    code = main()
    # Without this, the interpreter's garbage collection at exit takes 50 ms. It skips frozen objects.
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    entry()
