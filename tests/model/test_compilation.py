"""Compiled models: the same kernels whatever comes first, no limit reached unseen, and no break for layer dropout."""

import importlib.util
import itertools
import shutil
import sysconfig
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tfx.config.compose import compose
from tfx.config.schema import TrainerConfig
from tfx.model import compilation
from tfx.model.batch import Batch
from tfx.model.compilation import CompilationAccount, compile_for, missing_for_compiling
from tfx.model.linear import products_in
from tfx.model.rewiring import rewire_blocks, whole_block
from tfx.model.transformer import run_batch
from tfx.run.setup import Setup
from tfx.techniques.calibration import Calibration
from tfx.training.loop import Observer, Trainer

CPU = torch.device("cpu")
# Tracing takes its time for each layer.
SHALLOW = {"dtype": torch.float32, "encoder_layers": 1, "decoder_layers": 1}


@pytest.fixture
def backend(monkeypatch):
    """Has models compiled without making kernels; gives the graphs with the sizes that kernels would be chosen for."""
    plain, graphs = nn.Module.compile, []

    def record(module, inputs):
        hints = {}
        for node in module.graph.nodes:
            value = node.meta.get("example_value")
            sizes = value.shape if isinstance(value, torch.Tensor) else [value]
            for size in sizes if node.op == "placeholder" else ():
                if isinstance(size, torch.SymInt):
                    hints |= {size.node.expr: size.node.hint}
        graphs.append((module.code, hints))
        return module

    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: plain(module, backend=record, **options))
    torch.compiler.reset()
    yield graphs
    torch.compiler.reset()


def compiled(model):
    compile_for(model, TrainerConfig(compile="on"), CPU)
    return model


def batch(rows, source, target, *, mixed=False, padded=True):
    generator = torch.Generator().manual_seed(rows)
    source_BS = torch.randint(3, 11, (rows, source), generator=generator)
    target_BT = torch.randint(3, 11, (rows, target), generator=generator)
    mask_BS = torch.ones(rows, source, dtype=torch.bool) if padded else None
    made = Batch(target_BT, target_BT, source_BS, mask_BS, np.arange(rows), 1, 1, 1, (0, 1, 2))
    return made.mixed(torch.arange(rows).flip(0), torch.rand(rows)) if mixed else made


def test_models_that_are_compiled_use_up_no_limit_together(backend, make_model, monkeypatch):
    monkeypatch.setattr(compilation, "_MAX_VARIANTS", 1)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for _ in range(2):
            model = compiled(make_model(**SHALLOW))
            assert torch.isfinite(run_batch(model, batch(3, 4, 5))).all()
    assert len(backend) == 2


@pytest.mark.parametrize("mixed", [False, True])
def test_kernels_are_chosen_for_the_same_sizes_whatever_batch_comes_first(backend, make_model, mixed):
    shapes = [(8, 7, 9), (5, 5, 5)]
    for first in shapes:
        model = compiled(make_model(**SHALLOW))
        for shape in (first, *shapes):
            run_batch(model, batch(*shape, mixed=mixed))
    assert len(backend) == len(shapes)
    code, hints = backend[0]
    # Rows, and the context of 32 for targets.
    assert sorted(hints.values()) == [31, 32, 62]
    # The same symbols with the same sizes: nothing is left of what came first, not even that three sizes were equal.
    assert all(graph == (code, hints) for graph in backend)


def test_a_model_without_some_of_its_parts_meets_the_fixed_sizes_again(backend, make_model):
    model = compiled(make_model(**SHALLOW))
    run_batch(model, batch(8, 7, 9))
    whole = [whole_block(0, stack[0]) for stack in (model.architecture.encoder, model.architecture.decoder)]
    rewire_blocks(model, *([replace(plan, units=plan.units[:-1])] for plan in whole)).apply(model)
    run_batch(model, batch(8, 7, 9))
    assert len(backend) == 2
    assert [sorted(hints.values()) for _, hints in backend] == [[31, 32, 62]] * 2


@pytest.mark.parametrize("is_settled", [False, True])
def test_inputs_of_layers_are_measured_as_without_compiling(backend, make_model, is_settled):
    """Compiled code does not look for the hooks that measure."""
    plain, ours = (make_model(**SHALLOW).eval() for _ in range(2))
    ours.load_state_dict(plain.state_dict())
    compiled(ours)
    if is_settled:
        with torch.no_grad():
            run_batch(ours, batch(3, 4, 5))
    found = []
    for model in (plain, ours):
        calibration = Calibration(model, lambda count: [batch(3, 4, 5)] * count)
        calibration.request(2)
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
        found.append(calibration.second_moments(layers))
    assert len(found[0]) > 10
    for name, moments in found[0].items():
        torch.testing.assert_close(found[1][name], moments)
    assert ours._compiled_call_impl is not None


def test_where_torch_cannot_compile_for_a_gpu_the_model_runs_as_it_stands(monkeypatch, make_model, tmp_path):
    gpu = torch.device("cuda", 0)
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert missing_for_compiling(gpu) == "a GPU of compute capability 7.0 or more"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert missing_for_compiling(gpu) == "the package triton"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for there, lacks in ((["clang"], ""), (["g++"], "a C compiler (gcc)"), (["gcc"], "")):
        monkeypatch.setattr(shutil, "which", lambda name, there=there: name if name in there else None)
        assert missing_for_compiling(gpu) == lacks
        model = make_model(**SHALLOW)
        compile_for(model, TrainerConfig(), gpu)
        assert (model._compiled_call_impl is None) == bool(lacks)
    assert missing_for_compiling(CPU) == "a C++ compiler (g++)"
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    for device in (gpu, CPU):
        assert missing_for_compiling(device) == "the headers of Python (the package python3-dev)"
    (tmp_path / "Python.h").touch()
    assert not any(map(missing_for_compiling, (gpu, CPU)))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CC", "gone")
    assert missing_for_compiling(gpu) == "a C compiler (gcc)"


def test_on_a_gpu_nothing_depends_on_the_number_of_rows_and_asking_for_fp32_is_no_fault(monkeypatch, make_model):
    given = []
    monkeypatch.setattr(compilation, "missing_for_compiling", lambda device: "")
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: given.append(options))
    with warnings.catch_warnings(record=True) as told:
        compile_for(make_model(**SHALLOW), TrainerConfig(), torch.device("cuda", 0))
        warnings.warn("TensorFloat32 tensor cores for float32 matrix multiplication available", stacklevel=1)
        compile_for(make_model(**SHALLOW), TrainerConfig(compile="on"), CPU)
    assert [options.get("options") for options in given] == [{"triton.mix_order_reduction": False}, None]
    assert not told
    torch.compile(torch.sin, options=given[0]["options"])  # which refuses names that it does not know


def test_every_variant_of_a_forward_pass_is_compiled(backend, make_model):
    model = compiled(make_model(**SHALLOW, dropout=0.1))
    account = CompilationAccount()
    # More than torch would compile by itself, if it would compile two.
    choices = [(True, False, 3), (True, True, 3), (False, False, 3), (True, False, 1)]
    with torch._dynamo.config.patch(recompile_limit=2):
        for training, padded, rows in choices:
            model.train(training)
            run_batch(model, batch(rows, 4, 5, padded=padded))
    assert len(backend) == account.graphs == len(choices)
    assert account.given_up() == []


def test_meeting_fixed_sizes_first_changes_no_draw_and_no_gradient(backend, make_model):
    plain, ours = make_model(**SHALLOW, dropout=0.5).train(), compiled(make_model(**SHALLOW, dropout=0.5).train())
    for model in (plain, ours):
        model.token_dropout.rate = 0.3  # drawn alike, compiled or not
        torch.manual_seed(1)
        with torch.random.fork_rng():
            run_batch(model, batch(3, 4, 5))
        assert all(parameter.grad is None for parameter in model.parameters())
    torch.manual_seed(1)
    first = run_batch(ours, batch(3, 4, 5))
    torch.manual_seed(1)
    assert torch.equal(first, run_batch(ours, batch(3, 4, 5)))


def test_mixed_products_are_compiled_for_any_number_of_rows(backend, make_model):
    model = compiled(make_model(**SHALLOW).train())
    with products_in(torch.bfloat16):
        for rows in (3, 32, 64):
            loss = run_batch(model, batch(rows, 4, 8)).sum()
            loss.backward()
    assert len(backend) == 1


@pytest.mark.parametrize("document_start", [None, 2])
def test_windows_of_one_shape_have_one_graph_of_fixed_sizes(backend, make_model, document_start):
    """And what is scored has one of any size, whatever the sizes of its batches."""
    settings = {"dtype": torch.float32, "family": "lm", "decoder_layers": 1}
    model, plain = make_model(**settings).train(), make_model(**settings).train()
    compile_for(model, TrainerConfig(compile="on"), CPU, trains_on_one_shape=True)
    account = CompilationAccount()

    def windows(rows, length):
        return replace(batch(rows, 1, length), source_BS=None, source_mask_BS=None, document_start=document_start)

    for _ in range(3):
        found = run_batch(model, windows(4, 16))
        torch.testing.assert_close(found, run_batch(plain, windows(4, 16)), atol=1e-5, rtol=1e-5)
        found.sum().backward()
    assert len(backend) == account.graphs == 1
    assert backend[0][1] == {}, "a size is not fixed"
    model.eval(), plain.eval()
    with torch.inference_mode():
        for rows, length in ((8, 16), (3, 16), (5, 9)):
            scored = run_batch(model, windows(rows, length))
            torch.testing.assert_close(scored, run_batch(plain, windows(rows, length)), atol=1e-5, rtol=1e-5)
    run_batch(model.train(), windows(4, 16))
    assert len(backend) == account.graphs == 2
    assert {32, 62} <= set(backend[1][1].values()) <= {32, 62, document_start}
    assert account.given_up() == []


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        (["model=gpt_nano", "dataset=stdlib", "model.context=16", "dataset.batch_tokens=64"], {}),
        (["model.encoder_layers=1", "dataset.limit.valid=20", "dataset.batch_tokens=256"], {31, 37, 62}),
    ],
    ids=["lm", "seq2seq"],
)
def test_a_training_on_windows_fixes_its_shapes(backend, words, sizes, tmp_path, monkeypatch):
    monkeypatch.setenv("TFX_CACHE", str(tmp_path))
    tiny = ["model.width=16", "model.heads=2", "model.ffn_width=16", "model.decoder_layers=1", "trainer.compile=on"]
    tiny += ["trainer.budget.steps=4", "trainer.validate_every=0.5", "dataset.limit.train=50", "evaluation=greedy"]
    parts = Setup(compose([*tiny, *words, "dataset.tokenizer.kind=char"])).prepare({})
    cost = Trainer(parts.config, parts.model, parts.data, parts.device, Observer(), parts.stack).train()
    assert cost.compiled_graphs == len(backend) == 2
    assert set(backend[0][1].values()) == set(sizes)


def test_what_torch_gives_up_on_is_told_once(backend, make_model, monkeypatch):
    monkeypatch.setattr(compilation, "_MAX_VARIANTS", 1)
    model = compiled(make_model(**SHALLOW))
    account = CompilationAccount()
    run_batch(model, batch(3, 4, 5))
    assert (account.graphs, account.given_up()) == (1, [])
    run_batch(model, batch(3, 4, 5, padded=False))
    (told,) = account.given_up()
    assert "recompile limit exceeded" in told
    assert "\n" not in told
    assert account.given_up() == []


def test_layer_dropout_neither_breaks_the_graph_nor_multiplies_it(backend, make_model):
    settings = {"dtype": torch.float32, "family": "lm", "decoder_layers": 2}
    model = make_model(layer_dropout=0.5, **settings).train()
    tokens = torch.randint(3, 11, (3, 7), generator=torch.Generator().manual_seed(1))
    # What comes out where each subset of the blocks runs.
    whole, expected = make_model(**settings), []
    blocks = list(whole.decoder.blocks)
    for kept in itertools.product((False, True), repeat=2):
        whole.decoder.blocks = nn.ModuleList(itertools.compress(blocks, kept))
        expected.append(whole(tokens))
    seen = set()
    compiled(model)
    for seed in range(20):
        torch.manual_seed(seed)
        found = model(tokens)
        (match,) = [number for number, each in enumerate(expected) if torch.allclose(found, each, atol=1e-5)]
        seen.add(match)
        model.zero_grad()
        found.sum().backward()
        grads = [block.ffn.up.weight.grad for block in model.decoder.blocks]
        assert [bool(grad.any()) for grad in grads] == [bool(match & 2), bool(match & 1)]
    assert seen == {0, 1, 2, 3}
    assert len(backend) == 1
