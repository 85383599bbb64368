"""Runs command lines one after another and prints their cost.

A separate program without further imports, because the kernel counts the memory of the starting process as part of the
peak of the started one.

stdin: {"commands": [[...], ...], "out": FILE, "continue_on_error": BOOL}. stdout: {"wall", "cpu", "memory", "codes"} in
seconds, seconds and bytes (of the largest process), and the exit codes, up to the first that is not 0 unless
`continue_on_error` is set.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    order = json.load(sys.stdin)
    output = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    files = [(os.POSIX_SPAWN_DUP2, nothing, 0), *((os.POSIX_SPAWN_DUP2, output, number) for number in (1, 2))]
    cpu, memory, codes = 0.0, 0, []
    began = time.monotonic()
    for command in order["commands"]:
        pid = os.posix_spawnp(command[0], command, os.environ, file_actions=files)
        _, status, usage = os.wait4(pid, 0)
        cpu += usage.ru_utime + usage.ru_stime
        memory = max(memory, usage.ru_maxrss * 1024)
        codes.append(os.waitstatus_to_exitcode(status))
        if codes[-1] and not order["continue_on_error"]:
            break
    wall = time.monotonic() - began
    json.dump({"wall": wall, "cpu": cpu, "memory": memory, "codes": codes}, sys.stdout)


if __name__ == "__main__":
    main()
