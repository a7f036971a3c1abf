"""The shapes that kernels are tested and measured with: small and ragged ones, and the paper's."""

from __future__ import annotations

from eggroll.ops.truth import Shape

# No size is a multiple of a tile, or every size is; tiles are shared by members, or several to a member.
SMALL = (
    Shape(units=1, signs=1, rows=1, depth=1, columns=1),
    Shape(units=3, signs=2, rows=1, depth=33, columns=65),
    Shape(units=8, signs=2, rows=1, depth=128, columns=128, rank=2),
    Shape(units=5, signs=1, rows=3, depth=130, columns=257, rank=3),
    Shape(units=2, signs=2, rows=5, depth=300, columns=140, rank=16),
    Shape(units=2, signs=2, rows=130, depth=70, columns=150),
    Shape(units=1, signs=2, rows=256, depth=256, columns=128, rank=4),
)
# Several tiles along every axis, with ragged ends; a row per member, and many.
MIDDLE = (
    Shape(units=200, signs=2, rows=1, depth=1000, columns=1544),
    Shape(units=6, signs=2, rows=200, depth=520, columns=776, rank=2),
)
PAPER = Shape(units=512, signs=2, rows=1, depth=8192, columns=8192)  # arXiv 2511.16652, Fig. 7
