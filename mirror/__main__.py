"""The entry point of `python -m mirror` and of the program `mirror`."""

import signal

# This precedes all other imports, which take time. Outside a `Signals` block there is nothing to clean up, so the
# kernel should end the process without a traceback. If the parent process made it ignore SIGINT, it still does.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import gc
import sys
from typing import NoReturn

from mirror.cli import main
from mirror.util.memory import limit_heaps


def entry() -> NoReturn:
    """Run the command line and end the process."""
    limit_heaps()  # before threads start
    code = main()
    # The interpreter's garbage collection at exit would take 50 ms. It skips frozen objects.
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    entry()
