"""Compares tools that copy images between real registries. See `python -m benchmarks --help` and docs/performance.md.

A *scenario* (`scenarios`) defines the content of the registries, the images to copy, and the network between them. A
*tool* (`tools`) provides the command lines that copy these images. The *harness* starts the registries and runs the
tools in an interleaved order (A B C A B C ...). Its measurements do not rely on the tools: the kernel reports the cost
of processes (`launch`, `cost`), the access logs of the registries show requests and bytes (`traffic`), and requests to
the registries show whether the targets are equal to the source (`outcome`). `samples` defines the results. `tables`,
`figures` (Markdown) and `chart` (SVG) present them, and `files` writes them, also as JSON.

`ideal` and `replay` are not a tool but a baseline: they copy with the fewest requests and the least work possible.
"""
