"""The entry point of `python -m mirror` and of the program `mirror`."""

import signal

# Before all other imports: outside of `Signals` there is nothing to clean up, so the kernel should end the process
# without a traceback. If the parent process has set SIGINT to be ignored, it stays ignored.
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
    # The garbage collection at exit takes 50 ms; it skips frozen objects.
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    entry()
