"""Discovery: which axes of each parameter are contracted, looked up, looped over, or only used elementwise."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from eggroll.engine.factored import Use, discover, trace

NHWC = ("NHWC", "HWIO", "NHWC")


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def find(fun, params, *args) -> dict[str, list[Use]]:
    """The uses of each parameter, by its key."""
    args = (params, *args)
    return discover(trace(fun, args), [str(k[-1].key) for k, _ in jax.tree_util.tree_leaves_with_path(params)], args)


def split(uses: list[Use]) -> list[tuple]:
    return [(u.kind, u.left, u.right, u.stack) for u in uses]


def one(fun, sizes, *args) -> list[tuple]:
    """The uses of a single parameter."""
    return split(find(lambda p, *args: fun(p["w"], *args), {"w": shape(*sizes)}, *args)["w"])


X, IDS, ID = shape(2, 6), shape(3, dtype=jnp.int32), shape(dtype=jnp.int32)
ROWS = shape(2, 5, 6)
CASES = {
    "linear": (lambda w, x: x @ w, (6, 8), [X], (0,), (1,), ()),
    "transposed": (lambda w, x: x @ w.T, (8, 6), [X], (1,), (0,), ()),
    "weight on the left": (lambda w, x: w @ x.T, (8, 6), [X], (1,), (0,), ()),
    "vector": (lambda w, x: x @ w, (6,), [X], (0,), (), ()),
    "heads": (lambda w, x: jnp.einsum("btd,dhk->bthk", x, w), (6, 2, 4), [ROWS], (0,), (1, 2), ()),
    "heads, flattened": (lambda w, x: x @ w.reshape(6, 8), (6, 2, 4), [ROWS], (0,), (1, 2), ()),
    "from heads": (lambda w, x: jnp.einsum("bhk,hkd->bd", x, w), (2, 4, 6), [shape(3, 2, 4)], (0, 1), (2,), ()),
    "from heads, flattened": (lambda w, x: x @ w.reshape(8, 6), (2, 4, 6), [shape(3, 8)], (0, 1), (2,), ()),
    "gates": (lambda w, x: sum(jnp.split(x @ w, 4, -1)), (6, 8), [X], (0,), (1,), ()),
    "split before": (lambda w, x: [x @ g for g in jnp.split(w, 4, -1)], (6, 8), [X], (0,), (1,), ()),
    "stack": (lambda w, x: lax.scan(lambda h, p: (h @ p, None), x, w), (3, 6, 6), [X], (1,), (2,), (0,)),
    "stack, transposed": (lambda w, x: lax.scan(lambda h, p: (h @ p.T, None), x, w), (3, 6, 6), [X], (2,), (1,), (0,)),
    "stack in a while": (
        lambda w, n, x: lax.fori_loop(0, n, lambda i, h: h @ w[i], x), (3, 6, 6), [ID, X], (1,), (2,), (0,),
    ),
    "stack by hand": (lambda w, x: x @ w[0] @ w[1] @ w[2], (3, 6, 6), [X], (1,), (2,), (0,)),
    "stack unpacked": (lambda w, x: [x @ p for p in w], (3, 6, 8), [X], (1,), (2,), (0,)),
    "stack in a stack": (
        lambda w, x: lax.scan(lambda h, p: lax.scan(lambda h, q: (h @ q, None), h, p), x, w),
        (2, 3, 6, 6), [X], (2,), (3,), (0, 1),
    ),
    "stack with remat": (
        lambda w, x: lax.scan(jax.checkpoint(lambda h, p: (jax.jit(jnp.matmul)(h, p), p)), x, w)[0],
        (3, 6, 6), [X], (1,), (2,), (0,),
    ),
    "loop constant": (lambda w, x: lax.scan(lambda h, row: (h @ w, row), x, x), (6, 6), [X], (0,), (1,), ()),
    "while": (
        lambda w, n, x: lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] @ w), (0, x)),
        (6, 6), [ID, X], (0,), (1,), (),
    ),
    "while condition": (
        lambda w, x: lax.while_loop(lambda c: (c @ w).sum() < 9, lambda c: c + 1, x), (6, 8), [X], (0,), (1,), (),
    ),
    "cond": (lambda w, i, x: lax.cond(i > 0, lambda: x @ w, lambda: x @ -w), (6, 8), [ID, X], (0,), (1,), ()),
    "experts": (lambda w, x: jnp.einsum("ecd,edf->ecf", x, w), (4, 6, 8), [shape(4, 2, 6)], (1,), (2,), (0,)),
    "chosen experts": (
        lambda w, ids, x: jnp.einsum("td,tdf->tf", x, w[ids]), (4, 6, 8), [IDS, shape(3, 6)], (1,), (2,), (0,),
    ),
    "all experts": (lambda w, x: jnp.einsum("cd,edf->ecf", x, w), (4, 6, 8), [X], (1,), (0, 2), ()),
    "convolution": (
        lambda w, x: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC),
        (3, 3, 2, 4), [shape(1, 5, 5, 2)], (0, 1, 2), (3,), (),
    ),
    "transposed convolution": (
        lambda w, x: lax.conv_transpose(x, w, (2, 2), "SAME", transpose_kernel=True),
        (3, 3, 4, 2), [shape(1, 5, 5, 2)], (0, 1, 3), (2,), (),
    ),
    "grouped convolution": (
        lambda w, x: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=2),
        (3, 3, 1, 4), [shape(1, 5, 5, 2)], (0, 1, 2), (3,), (),
    ),
    "broadcast over a batch": (
        lambda w, x: x @ jnp.broadcast_to(w, (2, 6, 8)), (6, 8), [ROWS], (0,), (1,), (),
    ),
    "cast and scaled": (
        lambda w, x: x.astype(jnp.bfloat16) @ (0.5 * w).astype(jnp.bfloat16), (6, 8), [X], (0,), (1,), (),
    ),
    "reversed axes": (lambda w, x: x @ lax.rev(w, (0, 1)).T, (8, 6), [X], (1,), (0,), ()),
    "dimension of size one": (lambda w, x: x @ w[:, 0], (6, 1, 8), [X], (0,), (2,), (1,)),
    "inside a custom rule": (lambda w, x: jax.nn.relu(x @ w), (6, 8), [X], (0,), (1,), ()),
}  # fmt: skip


@pytest.mark.parametrize(("fun", "sizes", "args", "left", "right", "stack"), CASES.values(), ids=CASES)
def test_products(fun, sizes, args, left, right, stack):
    assert one(fun, sizes, *args) == [("product", left, right, stack)]


LOOKUPS = {
    "index": lambda w, ids: jnp.tanh(w[ids]),
    "take": lambda w, ids: jnp.tanh(jnp.take(w, ids, axis=0)),
    "axis 1": lambda w, ids: jnp.tanh(jnp.take(w.T, ids, axis=1)),
    "vmap": lambda w, ids: jnp.tanh(jax.vmap(lambda i: w[i])(ids)),
    "row by row": lambda w, ids: lax.map(lambda i: jnp.tanh(w[i]), ids),
    "scaled": lambda w, ids: jnp.tanh(w[ids] * 2.0),
    "returned": lambda w, ids: w[ids],
}


@pytest.mark.parametrize("fun", LOOKUPS.values(), ids=LOOKUPS)
def test_lookups(fun):
    """By gather and by dynamic_slice."""
    assert one(fun, (9, 4), IDS) == [("lookup", (0,), (1,), ())]


def test_a_tied_embedding_has_two_uses_that_agree():
    uses = one(lambda w, ids: jnp.tanh(w[ids]) @ w.T, (9, 4), IDS)
    assert uses == [("lookup", (0,), (1,), ()), ("product", (1,), (0,), ())]


def bias(p, x):
    return jnp.einsum("bd,dhk->bhk", x, p["w"]) + p["b"]


ELEMENTWISE = {
    "bias of rank one": (lambda p, x: jnp.tanh(x @ p["w"] + p["b"]), (6, 8), (8,)),
    "bias of rank two": (lambda p, x: jnp.tanh(bias(p, x)), (6, 2, 4), (2, 4)),
    "bias before the next product": (lambda p, x: (x @ p["w"] + p["b"]) @ jnp.ones((8, 3)), (6, 8), (8,)),
    "bias of rank two before a product": (
        lambda p, x: jnp.einsum("bhk,hkd->bd", bias(p, x), jnp.ones((2, 4, 5))), (6, 2, 4), (2, 4),
    ),
    "position added to a batch": (
        lambda p, x: (x.reshape(2, 3, 2) + p["b"]) @ p["w"], (2, 8), (3, 2),
    ),
    "position with a batch axis": (lambda p, x: (x.reshape(2, 3, 2) + p["b"]) @ p["w"], (2, 8), (1, 3, 2)),
    "slice of the positions": (lambda p, x: (x.reshape(2, 3, 2) + p["b"][:3]) @ p["w"], (2, 8), (5, 2)),
    "position without a batch": (lambda p, x: (x + p["b"]) @ p["w"], (6, 8), (2, 6)),
    "learned tokens": (lambda p, x: jnp.concatenate([p["b"], x]) @ p["w"], (6, 8), (4, 6)),
    "class token": (lambda p, x: jnp.concatenate([jnp.broadcast_to(p["b"], (2, 6)), x]) @ p["w"], (6, 8), (1, 6)),
    "gain": (lambda p, x: (x * p["b"]) @ p["w"], (6, 8), (6,)),
    "learned scale of the outputs": (lambda p, x: x @ (p["w"] * p["b"]), (6, 8), (8,)),
    "learned scale of the inputs": (lambda p, x: x @ (p["b"][:, None] * p["w"]), (6, 8), (6,)),
    "scalar": (lambda p, x: x @ p["w"] * p["b"], (6, 8), ()),
}  # fmt: skip


@pytest.mark.parametrize(("fun", "w", "b"), ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_biases_gains_and_positions_are_elementwise(fun, w, b):
    uses = find(fun, {"w": shape(*w), "b": shape(*b)}, X)
    assert {u.kind for u in uses["b"]} == {"elementwise"}
    assert [u.kind for u in uses["w"]] == ["product"]


@pytest.mark.parametrize(
    ("fun", "sizes"),
    [
        (lambda w, x: x @ jax.nn.softmax(w), (6, 8)),
        (lambda w, x: x @ jnp.sin(w), (6, 8)),
        (lambda w, x: (x * w).sum(), (2, 6)),
        (lambda w, x: x @ jnp.where(jnp.tri(6) > 0, w, 0.0), (6, 6)),
    ],
    ids=["softmax", "sine", "product of equals", "masked"],
)
def test_a_nonlinear_weight_is_elementwise(fun, sizes):
    assert {use[0] for use in one(fun, sizes, X)} == {"elementwise"}


def test_every_use_in_order():
    """A norm for regularisation and then a product: both are told."""
    uses = find(lambda p, x: jnp.abs(p["w"]).sum() + (x @ p["w"]).sum(), {"w": shape(6, 8)}, X)["w"]
    assert [(u.kind, u.primitive) for u in uses] == [("elementwise", "abs"), ("product", "dot_general")]


def test_unused_and_returned():
    uses = find(lambda p, x: (x @ p["w"], p["r"]), {"w": shape(6, 8), "r": shape(3, 4), "u": shape(5)}, X)
    assert uses["u"] == []
    assert split(uses["r"]) == [("elementwise", (), (0, 1), ())]
    assert uses["r"][0].primitive == "return"
    dead = find(lambda p, x: [x @ p["w"], jnp.sin(p["u"])][0], {"w": shape(6, 8), "u": shape(5)}, X)
    assert dead["u"] == []


def product(p, x):
    return x @ p["w"]  # the line that a use names


def test_a_use_names_primitive_and_line():
    (use,) = find(product, {"w": shape(6, 8)}, X)["w"]
    line = inspect.getsourcelines(product)[1] + 1
    assert (use.path, use.primitive) == ("w", "dot_general")
    assert use.line.endswith(f"test_usage.py:{line} (product)")


def test_one_line_evaluated_often_is_one_use():
    fun = lambda w, x: sum(product({"w": w}, x) for _ in range(3)) + lax.map(lambda r: product({"w": w}, r), x)  # noqa: E731
    assert len(one(fun, (6, 8), X)) == 1


def test_low_rank_adaptation():
    """Two thin factors and the weight they change; where they meet first, A is contracted along its second axis."""
    params = {"w": shape(6, 8), "a": shape(6, 2), "b": shape(2, 8)}
    thin = find(lambda p, x: x @ p["w"] + x @ p["a"] @ p["b"], params, X)
    assert {k: split(v) for k, v in thin.items()} == {key: [("product", (0,), (1,), ())] for key in "abw"}
    merged = find(lambda p, x: x @ (p["w"] + p["a"] @ p["b"]), params, X)
    assert split(merged["a"]) == [("product", (1,), (0,), ())]
    assert split(merged["w"]) == split(merged["b"]) == [("product", (0,), (1,), ())]


def test_nothing_is_computed():
    """Shapes are enough, of any size."""
    huge = 1 << 24
    assert one(lambda w, x: x @ w, (huge, huge), shape(2, huge)) == [("product", (0,), (1,), ())]
    assert one(lambda w, x: x @ w.reshape(huge, -1), (huge, 4, 1024), shape(2, huge)) == [("product", (0,), (1, 2), ())]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_parameters(dtype):
    uses = find(lambda p, x: x @ p["w"], {"w": shape(6, 8, dtype=dtype)}, shape(2, 6, dtype=dtype))
    assert split(uses["w"]) == [("product", (0,), (1,), ())]
