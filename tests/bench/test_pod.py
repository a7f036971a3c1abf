import json
import math
import pathlib

import pytest

from bench import pod

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "scaling.md"
D, F, V, L = 4096, 11008, 32000, 32
SIZE = L * (4 * D * D + 3 * D * F) + 2 * V * D + 65 * D


def test_the_page_has_the_tables_of_the_script(capsys):
    pod.main(["--markdown"])
    printed = capsys.readouterr().out.strip().split("\n\n")
    assert len(printed) == 3
    text = PAGE.read_text(encoding="utf-8")
    for table in printed:
        assert table in text


def test_the_model_has_seven_billion_parameters():
    held, apart = pod.numbers((256, 1))
    assert held == SIZE == 6_738_415_616
    assert apart == (SIZE - 65 * D) / 256 + 65 * D


def test_memory_and_bytes_by_the_pages_formulas():
    for update, owned in (("members", SIZE), ("weights", SIZE / 256)):
        told = pod.memory((256, 1), update)
        want = 2 * SIZE + 12 * owned + 4 * owned + 0.25 * 95e9
        assert told["all"] == pytest.approx(want / 1e9, rel=1e-3)
    assert pod.cost((256, 1), "members").crossing == 4 * SIZE
    assert pod.cost((256, 1), "weights").crossing == pytest.approx(2 * SIZE, rel=1e-3)
    assert pod.cost((16, 16), "members").crossing == pytest.approx(4 * SIZE / 16, rel=1e-2)


def test_times_by_the_pages_formulas():
    n, t = 2**20, 512
    assert pod.forward_seconds() == pytest.approx(
        n * t * (2 * (SIZE - V * D) + 2 * L * t * D) / (256 * 0.4 * 459e12), rel=1e-3
    )
    assert pod.activation_seconds((16, 16)) == 2 * L * 2 * 15 / 16 * (2 * D * t * n / 16) / 200e9
    assert pod.activation_seconds((256, 1)) == 0
    spent = pod.cost((256, 1), "members")
    pairs = n // 2
    assert spent.flops == 2 * pairs * SIZE / 256
    assert spent.numbers == pairs / 256 * (L * (8 * D + 3 * (D + F)) + 2 * (V + D) + 65 * D)
    products, optimizer = spent.flops / 76e12, 26 * SIZE / 2765e9
    noise = spent.numbers * (60 / 32 + 4) / 14e12
    assert spent.seconds == pytest.approx(products + optimizer + noise + 2 * 255 / 256 * 4 * SIZE / 200e9, rel=1e-6)


def test_layouts_take_the_same_time_at_the_population_of_the_last_column():
    even = pod.even_population((16, 16))
    for factor, better in ((0.5, "weights"), (2, "members")):
        times = {u: pod.cost((16, 16), u, 2 * int(factor * even / 2)).seconds for u in pod.UPDATES}
        assert min(times, key=times.__getitem__) == better


def test_what_does_not_fit_does_not_win():
    rows = {row["mesh"]: row for row in pod.tables()[0]}
    first = rows["256 x 1"]
    assert first["members_update_s"] < first["weights_update_s"]
    assert first["members_gb"] > 95 > first["weights_gb"] and first["better"] == "weights"
    assert first["generation_s"] == pytest.approx(first["forward_s"] + first["weights_update_s"])
    assert all(math.isfinite(row["generation_s"]) for row in rows.values())


def test_a_run_ends_with_json(capsys, tmp_path):
    pod.main(["--out", str(tmp_path / "kept.json")])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [row["mesh"] for row in found["rows"]] == ["256 x 1", "64 x 4", "32 x 8", "16 x 16", "8 x 32"]
