"""Runs command lines one after the other and says what they cost. A small program of its own, which needs nothing else:
what the kernel calls a process's peak memory begins with that of the process that started it.

stdin: {"commands": [[...], ...], "out": FILE, "go_on": BOOL}. stdout: {"wall", "cpu", "memory", "codes"}: seconds,
seconds, bytes (the largest process) and exit codes, up to the first that is not 0 unless `go_on`.
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
        if codes[-1] and not order["go_on"]:
            break
    wall = time.monotonic() - began
    json.dump({"wall": wall, "cpu": cpu, "memory": memory, "codes": codes}, sys.stdout)


if __name__ == "__main__":
    main()
