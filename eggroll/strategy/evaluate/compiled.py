"""`jax.jit` for functions whose arguments mix arrays with leaves that are not arrays."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import jax

from eggroll.engine.annotations import Function
from eggroll.engine.factored import partition

KEPT = 64  # compiled variants; a function made anew at every call must not fill the memory


class CompiledCache:
    """Compiles `fun(*args)` once per structure, non-array leaves and `static` key; arrays are traced."""

    def __init__(self) -> None:
        self._variants: OrderedDict[Hashable, Function] = OrderedDict()

    def __call__(self, fun: Function, static: Hashable, *args: Any) -> Any:
        """Calls `fun(*args)` compiled; `static` names everything else that `fun` depends on."""
        arrays, merge, structure = partition(args)
        leaves = jax.tree.leaves(merge([None] * len(arrays)), is_leaf=lambda x: x is None)
        try:
            key = (static, structure, tuple((type(leaf), leaf) for leaf in leaves))
            hash(key)
        except TypeError:  # an unhashable leaf: right, but compiled at every call
            return jax.jit(lambda a: fun(*merge(a)))(arrays)
        if key not in self._variants:
            self._variants[key] = jax.jit(lambda a: fun(*merge(a)))
            if len(self._variants) > KEPT:
                self._variants.popitem(last=False)
        self._variants.move_to_end(key)
        return self._variants[key](arrays)
