"""`bench.gpu_compile`: what it reads in the words of NVIDIA's compiler."""

from __future__ import annotations

import os

import pytest

from bench import gpu_compile
from bench.gpu_compile import KernelReport

SPILLS = """ptxas info    : Compiling entry function 'kernel' for 'sm_90a'
ptxas info    : Function properties for kernel
    8 bytes stack frame, 144 bytes spill stores, 240 bytes spill loads
ptxas info    : Used 168 registers, used 16 barriers, 1 bytes smem
"""
SERIAL = "ptxas info : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to ...\n"


def test_registers_spills_and_memory(tmp_path):
    file = tmp_path / "kernel_0.ptxas"
    file.write_text(SPILLS)
    assert gpu_compile._report(file) == KernelReport(168, 144, None, False)
    file.write_text(SPILLS + SERIAL)
    file.with_suffix(".resources.txt").write_text("Resources(smem_scratch_bytes=217088, tmem_scratch_cols=0)")
    assert gpu_compile._report(file) == KernelReport(168, 144, 217088, True)


def test_the_environment_is_put_back(monkeypatch, tmp_path):
    monkeypatch.setenv("MOSAIC_GPU_DUMP_TO", "before")
    monkeypatch.delenv("MOSAIC_GPU_DUMP_PTXAS", raising=False)
    with pytest.raises(KeyboardInterrupt), gpu_compile._dumping_to(str(tmp_path)):
        assert os.environ["MOSAIC_GPU_DUMP_TO"] == str(tmp_path) and os.environ["MOSAIC_GPU_DUMP_PTXAS"] == "1"
        raise KeyboardInterrupt
    assert os.environ["MOSAIC_GPU_DUMP_TO"] == "before" and "MOSAIC_GPU_DUMP_PTXAS" not in os.environ


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(gpu_compile, "has_compiler", lambda: False)
    with pytest.raises(SystemExit, match="pip install --no-deps jax-cuda13-plugin"):
        gpu_compile.main(["--quick"])
