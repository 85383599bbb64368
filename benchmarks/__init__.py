"""Tools that copy images, side by side, on real registries. `python -m benchmarks --help`; docs/performance.md.

*A scenario* (`scenarios`) says what the registries hold, what is to be copied, and what lies between. *A tool*
(`tools`) says how it is told to do that. The *harness* starts the registries, runs the tools in turns (A B C A B C ...)
and asks witnesses, none of which is the tool: the kernel for the cost of the processes (`launch`, `cost`), the access
logs of the registries for requests and bytes (`traffic`), the registries themselves for the outcome (`outcome`). *What
came out* is in `samples`, and is shown by `tables`, `figures` (Markdown), `chart` (SVG) and as JSON.

`ideal` and `replay` are no tool but a yardstick: the fewest requests and the least work that could be enough.
"""
