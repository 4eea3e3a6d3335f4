"""The tape: how a value remembers where it came from, and what can be asked of it.

python examples/01_tape.py
"""

import math

import numpy as np

import tinygrad_ml as tg


def number(x):
    """A leaf: a number we own and want derivatives to, in float64"""
    return tg.tensor(np.float64(x), requires_grad=True)


def show_tape(y, names):
    """Every vertex behind y, oldest first, with what it read."""
    found, todo = set(), [y.vertex]
    while todo:
        vertex = todo.pop()
        if vertex not in found:
            found.add(vertex)
            todo += vertex.parents() if isinstance(vertex, tg.autograd.Node) else []
    for vertex in sorted(found, key=lambda v: v.birth):
        if isinstance(vertex, tg.autograd.Node):
            read = ", ".join(str(parent.birth) for parent in vertex.parents())
            print(f"    born {vertex.birth}: {vertex.name:<4} of {read}")
        else:
            print(f"    born {vertex.birth}: {names[vertex]}, a leaf")


def section(title):
    print(f"\n{title}\n{'-' * len(title)}")


section("1. Computing writes a tape")
a, b = number(2.0), number(0.5)
y = a * tg.sin(a * b) + b
print(f"y = a sin(ab) + b at a = {a.item()}, b = {b.item()} is {y.item():.6f}. Its tape:")
show_tape(y, {a: "a", b: "b"})
print("Each operation is numbered when it is made, so it is younger than all that it read.")

section("2. A gradient is read off backwards, youngest first")
ga, gb = tg.grad(y, [a, b])
by_hand_a = math.sin(1.0) + 2.0 * 0.5 * math.cos(1.0)  # sin(ab) + ab cos(ab)
by_hand_b = 2.0**2 * math.cos(1.0) + 1  # a^2 cos(ab) + 1
print(f"dy/da: tape {ga.item():.12f}, by hand {by_hand_a:.12f}")
print(f"dy/db: tape {gb.item():.12f}, by hand {by_hand_b:.12f}")
print("When `mul` has its turn, every user of its result has already sent its share.")

section("3. The backward pass can be recorded too: a derivative of a derivative")
(ga,) = tg.grad(y, [a], create_graph=True)
second = tg.grad(ga, a).item()
by_hand = 2 * 0.5 * math.cos(1.0) - 2.0 * 0.5**2 * math.sin(1.0)  # 2b cos(ab) - a b^2 sin(ab)
print(f"d2y/da2: tape {second:.12f}, by hand {by_hand:.12f}")
x = number(0.3)
derivatives = [tg.sin(x)]
for _ in range(4):
    derivatives += tg.grad(derivatives[-1], [x], create_graph=True)
print("sin(0.3) and four derivatives:", *(f"{d.item():+.4f}" for d in derivatives))

section("4. A function of our own: its value, and one line for its derivative")


@tg.op
def lambert_w(xp, x):
    """The w >= 0 with w e^w = x, for x >= 0, by Newton's method"""
    w = xp.log1p(x)
    for _ in range(20):
        e = xp.exp(w)
        w = w - (w * e - x) / (e * (w + 1))
    return w


# w e^w = x  =>  (1 + w) e^w dw = dx. `y` is the output; nothing else is kept for the backward pass.
lambert_w.vjp(x=lambda g, y: g / (tg.exp(y) * (1 + y)))

x = number(math.e)  # W(e) = 1, since 1 e^1 = e
w = lambert_w(x)
(slope,) = tg.grad(w, [x], create_graph=True)
bend = tg.grad(slope, x).item()
print(f"W(e)   = {w.item():.12f}, exact 1")
print(f"W'(e)  = {slope.item():.12f}, exact 1/(2e)    = {1 / (2 * math.e):.12f}")
print(f"W''(e) = {bend:.12f}, exact -3/(8e^2) = {-3 / (8 * math.e**2):.12f}")
print("The tape never saw the Newton steps. It differentiated the one line, twice.")
