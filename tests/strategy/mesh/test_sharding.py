import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import eggroll
from bench.tools.update_costs import RATES, update_cost
from eggroll.strategy.noise.sampler import Sampler
from eggroll.strategy.plan.leaves import Plan, make_plan
from eggroll.strategy.population import Population, as_sharding, layout
from eggroll.strategy.state import make_placement
from eggroll.strategy.update.low_rank import sum_noise
from tests.strategy.common import KEY, X, Y, assert_close, fitness, params

WIDE = AbstractMesh((2, 4), ("population", "model"))
PATHS, SHAPES = ["a/bias", "a/kernel", "b/kernel"], [(8,), (6, 8), (8, 6)]


def one_device(*names):
    return Mesh(np.array(jax.devices()[:1]).reshape([1] * len(names)), names)


def specs(sharding, mesh=WIDE):
    return as_sharding(sharding, mesh).specs(PATHS, SHAPES, mesh)


def test_the_first_rule_that_matches_the_whole_path_decides():
    rules = [("a/kernel", P(None, "model")), (".*kernel", P("model")), ("a/b", P())]
    assert specs(rules[:2]) == (P(), P(None, "model"), P("model"))
    with pytest.raises(ValueError, match=r"sharding rule for 'a/b' decides for no parameter"):
        specs(rules)


def test_nothing_is_split_by_default():
    assert specs(None) == specs([]) == (P(), P(), P())


def test_a_pytree_names_every_parameter():
    tree = {"a": {"bias": None, "kernel": P(None, "model")}, "b": {"kernel": NamedSharding(WIDE, P("model"))}}
    assert specs(tree) == (P(), P(None, "model"), P("model"))
    assert specs({"a": {"bias": None, "kernel": P()}, "b": {"kernel": P(None, None)}})[2] == P(None, None)
    with pytest.raises(ValueError, match=r"a pytree as sharding without an entry for 'a/bias'"):
        specs({"a": {"kernel": P()}, "b": {"kernel": P()}})
    with pytest.raises(ValueError, match=r"rule for 'c' decides for no parameter"):
        specs(tree | {"c": P()})


def test_the_state_of_a_flax_module_names_its_parameters():
    model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    state = nnx.state(model, nnx.Param)
    tree = jax.tree.map(lambda x: P("model") if x.ndim == 1 else P(None, "model"), state)
    assert as_sharding(tree, WIDE).specs(["bias", "kernel"], [(4,), (8, 4)], WIDE) == (P("model"), P(None, "model"))


@pytest.mark.parametrize(
    ("sharding", "error", "match"),
    [
        ([(".*", P("rows"))], ValueError, r"the mesh has no axis 'rows', only 'population', 'model'"),
        ([(".*", P("population"))], ValueError, r"members share the parameters, .* name another axis"),
        ([(".*", P(("model", "population")))], ValueError, r"members share the parameters"),
        ([(".*", P("model", "model"))], ValueError, r"names the axis 'model' twice"),
        ([("a/bias", P(None, "model"))], ValueError, r"for 'a/bias' of shape \(8,\): 2 entries for 1 axes"),
        ([("a/kernel", P("model"))], ValueError, r"'a/kernel' of shape \(6, 8\): axis 0 of size 6 .* into 4 equal"),
        ([("(", P())], ValueError, r"pattern '\(' is not a regular expression"),
        ([(".*", "model")], TypeError, r"got 'model' as the sharding of '\.\*'; a jax\.sharding\.PartitionSpec"),
        ([(".*", P(P.UNCONSTRAINED))], ValueError, r"every entry must be None"),
        ({"a": 3}, TypeError, r"got 3 as the sharding of 'a'"),
        ([(".*", NamedSharding(AbstractMesh((8,), ("model",)), P()))], ValueError, r"NamedSharding on a mesh"),
    ],
)
def test_specs_that_do_not_fit(sharding, error, match):
    with pytest.raises(error, match=match):
        specs(sharding)


def test_sharding_needs_a_mesh():
    with pytest.raises(ValueError, match="got sharding without a mesh"):
        eggroll.ES(population=8, sharding=[(".*", P())])
    with pytest.raises(ValueError, match="got update='rows'; one of 'auto', 'members', 'weights'"):
        eggroll.ES(population=8, update="rows")


def test_one_device_is_a_mesh_too():
    """The update may be asked for in any layout; without a mesh, or on one device, all is as it was."""
    optimizer = optax.adam(0.1)
    plain = eggroll.ES(population=8, sigma=0.1, optimizer=optimizer)
    want, _ = plain.step(plain.init(params(), KEY), fitness, X, Y)
    mesh, rules = one_device("population", "model"), [("kernel", P("model"))]
    meshed = eggroll.ES(population=8, sigma=0.1, optimizer=optimizer, mesh=mesh, sharding=rules, update="weights")
    got, _ = meshed.step(meshed.init(params(), KEY), fitness, X, Y)
    assert_close((got.params, got.opt_state), (want.params, want.opt_state), 1e-5)
    assert all(x.sharding.mesh == mesh for x in jax.tree.leaves(got))
    assert plain.update == "members" and meshed.update == "weights"


def test_no_kernel_draws_factors_of_parameters_that_are_split(kernels):
    mesh = one_device("population", "model")
    for sharding, seeded in ((None, True), ([("kernel", P("model"))], False)):
        es = eggroll.ES(population=8, sigma=0.1, mesh=mesh, sharding=sharding)
        members = es.ask(es.init(params(), KEY))
        members.apply(fitness, jnp.stack([X] * 8), Y, in_axes=(0, None))
        assert [leaf.matrix is not None for leaf in members.plan.leaves] == [False, seeded]


MATRIX = {"w": jax.ShapeDtypeStruct((256, 128), jnp.float32)}


def cost(update, mesh=WIDE, sharding=None, **options):
    plan = make_plan(MATRIX, None, rank=options.pop("rank", 1))
    placement = make_placement(mesh, as_sharding(sharding, mesh), update, plan.leaves)
    return update_cost(placement, plan, Population(64, **options), RATES["tpu"])


def test_costs_of_one_matrix():
    """4·m·n bytes are added up, or m·n new weights made whole; by weights each device draws all the noise."""
    size, numbers = 256 * 128, 256 + 128
    members, weights = cost("members"), cost("weights")
    assert members[:5] == (2 * 16 * size, numbers * 16, size * 28, 4 * size, (4 + 8 + 4) * size)
    assert weights[:5] == (2 * 16 * size, numbers * 32, size / 2 * 28, 4 * size, (4 + (8 + 4) / 2) * size)
    split = cost("weights", sharding=[("w", P(None, "model"))])
    assert (split.flops, split.crossing) == (members.flops / 4, members.crossing / 4)


def test_weights_are_summed_where_members_do_not_fit():
    """By members a device holds 18 bytes of every bfloat16 parameter: itself, a sum, a master copy and two moments."""
    size, adam = 4096 * 4096, optax.adam(0.1)
    matrix = {"w": jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)}
    for mesh, sharding, need in ((("population",), None, 18), (("population", "model"), [("w", P("model"))], 18 / 4)):
        wide = AbstractMesh((4,) * len(mesh), mesh)
        settings = Population(64, sharding=as_sharding(sharding, wide))
        object.__setattr__(settings, "mesh", wide)  # not of this machine's devices
        assert layout(settings, matrix, adam, memory=(need + 0.1) * size) == "members"
        assert layout(settings, matrix, adam, memory=(need - 0.1) * size) == "weights"
        assert layout(settings, matrix, optax.sgd(0.1), memory=(need * 10 / 18 + 0.1) * size) == "members"
        assert layout(settings, matrix, adam) == "members"  # a CPU does not tell its memory
    assert layout(Population(64), matrix, adam, memory=0) == "members"  # one device


def test_flops_are_the_compilers_for_one_chunk():
    """Of a program with a single chunk, where XLA counts all: products dominate at this rank."""
    rank, units = 16, 32
    plan = make_plan(MATRIX, None, rank=rank)
    sampler = Sampler(plan, "rademacher", None)
    fun = jax.jit(lambda w, key: sum_noise(plan, sampler, w, None, key, 0))
    counted = fun.lower(jnp.ones(units), KEY).compile().cost_analysis()["flops"]
    alone = AbstractMesh((1,), ("population",))
    told = cost("members", alone, rank=rank).flops
    assert told == 2 * units * 256 * 128 * rank
    assert told <= counted <= 1.2 * told


def test_longest_free_axis_is_split_for_the_update():
    plan = make_plan({"w": jnp.zeros((6, 8, 4)), "v": jnp.zeros(8), "odd": jnp.zeros((3, 5))}, None)
    placed = make_placement(WIDE, as_sharding([("w", P(None, "model"))], WIDE), "weights", plan.leaves)
    assert [leaf.path for leaf in plan.leaves] == ["odd", "v", "w"]
    assert placed.parts == (None, None, 0)
    assert placed.update_specs == [P(), P(), P("population", "model")]
    assert make_placement(WIDE, as_sharding(None, WIDE), "members", Plan(plan.leaves).leaves).parts == (None,) * 3
