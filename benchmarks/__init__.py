"""Compares tools that copy images, on real registries. See `python -m benchmarks --help` and docs/performance.md.

A *scenario* (`scenarios`) defines the content of the registries, the images to copy, and the network in between. A
*tool* (`tools`) knows its command lines for that. The *harness* starts the registries and runs the tools in turns (A B
C A B C ...). It measures independently of the tools: the kernel reports the cost of processes (`launch`, `cost`), the
access logs of the registries show requests and bytes (`traffic`), and the registries show the outcome (`outcome`). The
results are in `samples`; `tables`, `figures` (Markdown) and `chart` (SVG) present them, and they are written as JSON.

`ideal` and `replay` are not a tool but a baseline: the fewest requests and the least work that could suffice.
"""
