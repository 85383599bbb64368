"""`python -m mirror`, and the program `mirror`."""

import signal

# Before anything else is imported: until `Signals` takes over, and when it has handed back, there is nothing to tidy
# up, and the kernel ends the process without a traceback. Who had it ignored for us keeps that.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import gc
import sys
from typing import NoReturn

from mirror.cli import main


def entry() -> NoReturn:
    """Run the command line, and end the process."""
    code = main()
    # The interpreter collects garbage at its end, which takes 50 ms; what is frozen is not looked at.
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    entry()
