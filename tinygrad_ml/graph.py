"""A picture of the tape: DOT text, and SVG where graphviz is installed."""

import shutil
import subprocess

from .autograd import Node


def to_dot(y, names=None):
    """The tape behind y in the DOT language: ellipses are operations, boxes are leaves.

    names  {tensor: label} for the leaves, if they are to be told apart by more than their shape
    """
    labels = {id(x.vertex): name for x, name in zip((names or {}).keys(), (names or {}).values(),
                                                     strict=True)}  # fmt: skip
    lines, seen, todo = ["digraph tape {", "  rankdir=BT"], set(), [y.vertex]
    while todo:
        vertex = todo.pop()
        if id(vertex) in seen:
            continue
        seen.add(id(vertex))
        if isinstance(vertex, Node):
            label = f"{labels.get(id(vertex), vertex.name)}\\nborn {vertex.birth:g}"
            lines.append(f'  n{id(vertex)} [label="{label}"]')
        else:
            label = labels.get(id(vertex), "leaf")
            shape = f"{label}\\n{vertex.data.shape} {vertex.data.dtype}"
            lines.append(f'  n{id(vertex)} [shape=box, label="{shape}"]')
        for parent in vertex.parents() if isinstance(vertex, Node) else ():
            lines.append(f"  n{id(parent)} -> n{id(vertex)}")
            todo.append(parent)
    return "\n".join([*lines, "}"])


def to_svg(y, names=None):
    """The picture as SVG text; RuntimeError where graphviz's `dot` is not installed."""
    if shutil.which("dot") is None:
        raise RuntimeError("to_svg needs graphviz's program dot (apt install graphviz); "
                           "to_dot gives the text without it")  # fmt: skip
    done = subprocess.run(["dot", "-Tsvg"], input=to_dot(y, names), capture_output=True,
                          text=True, check=True)  # fmt: skip
    return done.stdout
