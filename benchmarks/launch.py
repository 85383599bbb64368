"""Runs command lines one after another and prints their cost.

This is a separate program with few imports, because the kernel counts the memory of the parent process as part of the
peak memory of its child.

It reads a JSON object from stdin: {"commands": [[...], ...], "out": FILE, "continue_on_error": BOOL}. Unless
`continue_on_error` is set, it stops after the first command whose exit code is not 0. It prints a JSON object to
stdout: "wall" and "cpu" are in seconds, "memory" is the peak memory of the largest process in bytes, and "codes" are
the exit codes of the commands.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    """Run the command lines from stdin and print their cost."""
    task = json.load(sys.stdin)
    output = os.open(task["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    files = [(os.POSIX_SPAWN_DUP2, nothing, 0), *((os.POSIX_SPAWN_DUP2, output, number) for number in (1, 2))]
    cpu, memory, codes = 0.0, 0, []
    began = time.monotonic()
    for command in task["commands"]:
        pid = os.posix_spawnp(command[0], command, os.environ, file_actions=files)
        _, status, usage = os.wait4(pid, 0)
        cpu += usage.ru_utime + usage.ru_stime
        memory = max(memory, usage.ru_maxrss * 1024)
        codes.append(os.waitstatus_to_exitcode(status))
        if codes[-1] and not task["continue_on_error"]:
            break
    wall = time.monotonic() - began
    json.dump({"wall": wall, "cpu": cpu, "memory": memory, "codes": codes}, sys.stdout)


if __name__ == "__main__":
    main()
