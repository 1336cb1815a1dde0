"""Compressing through the command: what the summary claims is what the file holds, and the file is a whole model."""

import json
import os
import subprocess
import sys

import pytest
import torch

import tfx
from tfx.cli import main
from tfx.compression import checkpoint
from tfx.compression.int8 import Int8Linear

SMALL = [
    "model.width=64",
    "model.heads=2",
    "model.ffn_width=128",
    "model.decoder_layers=1",
    "trainer.log_every=1",
    "evaluation=greedy",
    "evaluation.latency_inputs=2",
]
PAIRS = ["model.encoder_layers=1", *(f"dataset.limit.{split}=40" for split in ("train", "valid", "test"))]
STACK = "+technique=[prune,quantize]"


@pytest.fixture(scope="module")
def dense(folder):
    # A model of four steps that decays too has nothing to lose by coarse rounding.
    words = [*SMALL, *PAIRS, "optimizer.weight_decay=0", "trainer.budget.steps=4"]
    assert main(["train", *words, f"hydra.run.dir={folder / 'dense'}"]) == 0
    return folder / "dense"


@pytest.fixture(scope="module")
def compressed(folder):
    run = folder / "both"
    assert main(["train", *SMALL, *PAIRS, STACK, "trainer.budget.steps=10", f"hydra.run.dir={run}"]) == 0
    return run


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


def once(folder, dense, name, *overrides):
    """A finished model compressed in one shot."""
    run = folder / name
    words = [f"init_from={dense}", "trainer.budget.steps=0", "evaluation=greedy", "evaluation.latency_inputs=2"]
    assert main(["train", *words, *overrides, f"hydra.run.dir={run}"]) == 0
    return run


def test_the_default_stack_makes_a_file_at_least_nine_times_smaller(folder):
    """At the width of the default model: small ones have little but a header."""
    run = folder / "default"
    few = [f"dataset.limit.{split}=20" for split in ("train", "valid", "test")]
    words = [STACK, *few, "trainer.budget.steps=10", "evaluation=greedy", "evaluation.latency_inputs=2"]
    assert main(["train", *words, f"hydra.run.dir={run}"]) == 0
    bytes_ = summary_of(run)["bytes"]
    file = run / "compressed.safetensors"
    assert bytes_["file"] == file.stat().st_size == bytes_["weights"] + bytes_["header"] + bytes_["tokenizer"]
    plain = sum(4 * p.numel() for p in tfx.load(run / "model.safetensors").model.parameters())
    assert bytes_["dense_fp32"] == pytest.approx(plain, rel=0.01)
    assert bytes_["ratio"] == pytest.approx(bytes_["dense_fp32"] / (bytes_["weights"] + bytes_["header"]))
    assert bytes_["ratio"] >= 9


def test_the_stages_and_the_evidence_tell_what_each_technique_did(compressed):
    summary = summary_of(compressed)
    assert [row["name"] for row in summary["stages"]] == ["trained", "prune", "quantize", "file"]
    trained, prune, quantize, file = summary["stages"]
    assert trained["bytes"] > prune["bytes"] > quantize["bytes"] == file["bytes"]
    assert trained["nonzero_parameters"] == trained["parameters"]
    zeroed = summary["evidence"]["prune"]["weights_zeroed"]
    assert prune["nonzero_parameters"] == pytest.approx(prune["parameters"] - zeroed, abs=0.01 * zeroed)
    assert summary["evidence"]["prune"]["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert summary["evidence"]["quantize"]["bits"] == 4
    assert summary["evidence"]["quantize"]["aware_steps"] == 3
    assert summary["inference"].keys() >= {"file", "plain_fp32", "plain_bf16"}
    assert summary["techniques"] == ["prune", "quantize"]


def test_the_page_of_a_run_has_its_stages_and_the_bits_and_zeros_of_its_layers(compressed):
    page = (compressed / "report.html").read_text()
    for part in ("stage cost and saved", "Bits a weight by layer", "Sparsity by layer"):
        assert part in page, part
    rows = json.loads((compressed / "tensors.json").read_text())
    assert sum(row["bytes"] for row in rows) == summary_of(compressed)["bytes"]["weights"]


def test_plain_tensors_and_the_compressed_file_are_the_same_model(compressed):
    plain = checkpoint.load(compressed / "model.safetensors").model.state_dict()
    packed = checkpoint.load(compressed / "compressed.safetensors").model.state_dict()
    assert all(torch.equal(plain[name], packed[name]) for name in plain)
    assert checkpoint.load(compressed).path.name == "compressed.safetensors"


READ_BACK = """
import sys, torch
from tfx.compression import checkpoint
for line in sys.stdin:
    run, out = line.rstrip("\\n").split("\\t")
    model = checkpoint.load(run).model
    ids = torch.randint(4, 20, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.save(model.project(model(ids, ids if model.architecture.is_seq2seq else None)), out)
    print("done", flush=True)
"""


@pytest.fixture(scope="module")
def other_process():
    """Reads models back in a process that has made none of them: to its stdin go a run and where the logits go."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", READ_BACK]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment) as process:
        yield process
        process.stdin.close()


EIGHT = ["+technique=quantize", "technique.quantize.bits=8", "technique.quantize.granularity=channel"]
AFFINE = ["technique.quantize.method=gptq", "technique.quantize.range=affine", "technique.quantize.calibration=1"]
WAYS = {
    "stack": [STACK],
    "int8 weights": EIGHT,
    "int8 kernels": [*EIGHT, "technique.quantize.activations=int8"],
    "codebook": ["+technique=quantize", "technique.quantize.method=codebook", "technique.quantize.bits=3"],
    "gptq affine": [STACK, *AFFINE],
    "2:4": ["+technique=prune", "technique.prune.pattern=2:4", "technique.prune.embeddings=true"],
    "structure": ["+technique=prune", "technique.prune.sparsity=0", "technique.prune.structure.ffn=0.5"],
}


# A language model has fewer matrices of the same kinds: what differs is the walk over blocks, and the kernels.
@pytest.mark.parametrize(
    ("family", "way"),
    [*(("seq2seq", way) for way in WAYS), *(("lm", way) for way in ("stack", "int8 kernels", "gptq affine"))],
)
def test_a_new_process_reads_back_the_very_logits_of_the_model_in_memory(
    folder, family, way, monkeypatch, other_process
):
    """What was in memory is taken where the run compares it with the file, just before the file is kept."""
    from tfx.run.measure import Measurer

    held = {}
    compare = Measurer._compare

    def spy(self, name, model, stack, loaded):
        ids = torch.randint(4, 20, (3, 9), generator=torch.Generator().manual_seed(0))
        twin = checkpoint.runnable(model, stack.storage())
        with torch.inference_mode():
            held["logits"] = twin.project(twin(ids, ids if model.architecture.is_seq2seq else None))
        compare(self, name, model, stack, loaded)

    monkeypatch.setattr(Measurer, "_compare", spy)
    run = folder / f"{family}-{way}".replace(" ", "_").replace(":", "_")
    data = PAIRS
    if family == "lm":
        data = ["model=gpt_nano", "model.context=16", "dataset=text", f"dataset.path={folder / 'text.txt'}"]
        data += ["dataset.tokenizer.kind=char", "dataset.batch_tokens=64"]
    assert main(["train", *data, *SMALL, *WAYS[way], "trainer.budget.steps=2", f"hydra.run.dir={run}"]) == 0
    out = folder / "out.pt"
    other_process.stdin.write(f"{run}\t{out}\n")
    other_process.stdin.flush()
    assert other_process.stdout.readline() == "done\n"
    assert torch.equal(torch.load(out), held["logits"])


def test_int8_layers_are_on_int8_kernels_where_they_run_and_plain_where_they_are_trained(folder, dense):
    eight = [
        "technique.quantize.bits=8",
        "technique.quantize.granularity=channel",
        "technique.quantize.activations=int8",
    ]
    run = once(folder, dense, "kernels", "+technique=quantize", *eight)
    ran = checkpoint.load(run).model
    layers = [module for module in ran.modules() if isinstance(module, Int8Linear)]
    assert isinstance(ran.output, Int8Linear)
    assert len(layers) == len(
        [m for m in checkpoint.load(run, kernels=False).model.modules() if isinstance(m, torch.nn.Linear)]
    )
    # Embeddings stay fp32 for the lookup, the rest takes a byte a weight.
    memory = summary_of(run)["inference"]
    assert memory["file"]["memory_bytes"] < memory["plain_fp32"]["memory_bytes"]
    again = folder / "kernels-on"
    words = [f"init_from={run}", "+technique=prune", "trainer.budget.steps=2", "evaluation=greedy"]
    assert main(["train", *words, "evaluation.latency_inputs=2", f"hydra.run.dir={again}"]) == 0
    assert main(["evaluate", str(run), "--json"]) == 0


def test_a_finished_model_is_compressed_in_one_shot_against_itself(folder, dense, capsys):
    run = once(folder, dense, "once", STACK)
    summary = summary_of(run)
    assert [row["name"] for row in summary["stages"]] == ["reference", "trained", "prune", "quantize", "file"]
    assert summary["reference"]["name"] == "init_from"
    assert summary["reference"]["test"] == summary_of(dense)["test"]
    assert summary["stages"][0]["valid"] == summary["stages"][1]["valid"] == summary_of(dense)["valid"]
    assert summary["train"]["steps"] == 0
    out = capsys.readouterr().out
    assert "differences to 'reference'" in out
    assert (run / "tokenizer.json").read_text() == (dense / "tokenizer.json").read_text()


def test_it_goes_on_from_a_compressed_file_and_teaches_from_one(folder, compressed):
    once(folder, compressed, "again", "+technique=quantize", "technique.quantize.bits=3")
    words = [*SMALL, *PAIRS, "+technique=distill", f"technique.distill.teacher={compressed}", "trainer.budget.steps=2"]
    assert main(["train", *words, f"hydra.run.dir={folder / 'taught'}"]) == 0
    assert summary_of(folder / "taught")["reference"]["name"] == "teacher"


def test_every_command_takes_the_compressed_file(compressed, capsys, monkeypatch):
    assert main(["inspect", str(compressed), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    file = compressed / "compressed.safetensors"
    assert sum(tensor["bytes"] for tensor in content["tensors"]) == content["bytes"]["weights"]
    bytes_ = content["bytes"]
    assert bytes_["weights"] + bytes_["header"] + bytes_["tokenizer"] == bytes_["file"] == file.stat().st_size
    pruned = [t for t in content["tensors"] if ".blocks." in t["name"] and len(t["shape"]) == 2]
    assert all(tensor["sparsity"] >= 0.49 for tensor in pruned)
    assert main(["evaluate", str(compressed), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == summary_of(compressed)["test"]
    assert main(["generate", str(file), "five past nine"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


# --- invariants -------------------------------------------------------------------------------------


def failed(folder, dense, name, *overrides):
    """The error of a one-shot compression that breaks."""
    run = folder / name
    words = [f"init_from={dense}", "trainer.budget.steps=0", "evaluation=greedy", "evaluation.latency_inputs=2"]
    assert main(["train", *words, *overrides, f"hydra.run.dir={run}"]) == 1
    assert not (run / ".stage.safetensors").exists()
    assert not (run / "compressed.safetensors").exists()
    summary = summary_of(run)
    assert summary["status"] == "failed"
    assert "BrokenInvariantError" in summary["error"]
    return summary["error"]


def test_a_grid_that_revives_pruned_weights_stops_the_run(folder, dense, monkeypatch):
    from tfx.techniques.quantize import technique

    to_grid = technique.to_grid

    def reviving(weight, scale, zero, kind):
        grid = to_grid(weight, scale, zero, kind)
        grid.codes_RC[0, weight[0] == 0] += 1
        return grid

    monkeypatch.setattr(technique, "to_grid", reviving)
    error = failed(folder, dense, "revived", STACK)
    assert "after quantize" in error
    assert "pruned weights of 'encoder.blocks.0.attention.q.weight' are no longer zero" in error


def test_zeros_that_only_the_file_loses_stop_the_run(folder, dense, monkeypatch):
    load = checkpoint.load

    def altered(path, *arguments, **settings):
        loaded = load(path, *arguments, **settings)
        with torch.no_grad():
            # Behind a layer whose weights are all zero, no logit shows it.
            if str(path).endswith(".stage.safetensors"):
                loaded.model.decoder.blocks[0].ffn.up.weight[:, 0] = 1.0
        return loaded

    monkeypatch.setattr(checkpoint, "load", altered)
    monkeypatch.setattr("tfx.run.measure.Measurer._compare", lambda *_: None)
    error = failed(folder, dense, "altered", "+technique=prune")
    assert "after prune, read back from the file," in error
    assert "'decoder.blocks.0.ffn.up.weight'" in error


def test_weights_that_are_not_tied_any_more_stop_the_run(folder, dense, monkeypatch):
    from tfx.techniques.prune import Prune

    finish = Prune.finish

    def untying(self, model, calibration):
        finish(self, model, calibration)
        model.output.weight = torch.nn.Parameter(model.embedding.weight.detach().clone())

    monkeypatch.setattr(Prune, "finish", untying)
    error = failed(folder, dense, "untied", "+technique=prune")
    assert "after prune 'output.weight' is no longer tied to 'embedding.weight'" in error


@pytest.fixture
def finished(monkeypatch):
    """The stack of the last run, as it was when its file was compared with the model in memory."""
    from tfx.run.measure import Measurer

    held = {}
    compare = Measurer._compare

    def spy(self, name, model, stack, loaded):
        held["stack"] = stack
        compare(self, name, model, stack, loaded)

    monkeypatch.setattr(Measurer, "_compare", spy)
    return held


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.averaging.kind=ema", "optimizer=adamw"],
        ["trainer.averaging.kind=last", "trainer.averaging.start=0.3", "trainer.averaging.snapshots=3"],
        [STACK, "trainer.averaging.kind=ema"],
    ],
    ids=["ema", "last", "ema quantized"],
)
def test_what_is_masked_is_zero_in_the_file(folder, overrides, finished, request):
    run = folder / request.node.callspec.id.replace(" ", "-")
    words = [*SMALL, *PAIRS, "+technique=prune", *overrides, "optimizer.lr=0.01", "trainer.budget.steps=8"]
    assert main(["train", *words, f"hydra.run.dir={run}"]) == 0
    weights = checkpoint.load(run / "compressed.safetensors").model.state_dict()
    masks = finished["stack"].masks
    assert len(masks) == sum(".blocks." in name and weight.ndim == 2 for name, weight in weights.items())
    for name, mask in masks.items():
        assert int((~mask).sum()) == round(0.5 * mask.numel())
        assert not bool(weights[name][~mask].any()), name
        assert float((weights[name][mask] != 0).float().mean()) > 0.5, name


@pytest.mark.parametrize("stack", ["prune", "[prune,quantize]"])
def test_a_pattern_holds_everywhere_in_the_file(folder, dense, stack):
    pattern = ["technique.prune.pattern=2:4", "technique.prune.embeddings=true"]
    run = once(folder, dense, f"pattern-{len(stack)}", f"+technique={stack}", *pattern)
    weights = checkpoint.load(run / "compressed.safetensors").model.state_dict()
    matrices = {name: weight for name, weight in weights.items() if weight.ndim == 2}
    assert "embedding.weight" in matrices
    for name, weight in matrices.items():
        stay = (weight.reshape(-1, 4) != 0).sum(1)
        assert int(stay.max()) == 2, name
        if stack == "prune":
            assert bool((stay == 2).all()), name


# --- what is measured, and on what ------------------------------------------------------------------


def test_calibration_is_a_slice_of_the_training_data_by_the_seed(folder):
    from tfx.config.compose import compose
    from tfx.run.setup import Setup
    from tfx.techniques.calibration import calibration_batches

    def batches(seed):
        parts = Setup(compose([*SMALL, *PAIRS, "dataset.batch_tokens=128", f"seed={seed}"])).prepare({})
        return calibration_batches(
            parts.data, parts.config, parts.model.architecture.context, parts.device, 3
        ), parts.data

    (first, data), (same, _), (other, _) = batches(1), batches(1), batches(2)
    assert len(first) == 3
    rows = [batch.source_BS.tolist() for batch in first]
    assert rows == [batch.source_BS.tolist() for batch in same]
    assert rows != [batch.source_BS.tolist() for batch in other]
    seen = {split: {tuple(part[i].tolist()) for i in range(len(part))} for split, part in sources(data)}
    assert not seen["train"] >= seen["valid"]  # else nothing would be shown
    for batch in first:
        for source, mask in zip(batch.source_BS, batch.source_mask_BS, strict=True):
            # The last token of a source is its end.
            assert any(tuple(source[mask][:length].tolist()) in seen["train"] for length in (None, -1))


def sources(data):
    return [(split, data.splits[split].source) for split in ("train", "valid")]


def test_speed_and_memory_of_reference_plain_tensors_and_file_are_measured(folder, dense):
    summary = summary_of(once(folder, dense, "speeds", STACK))
    assert summary["inference"].keys() == {"reference", "plain_fp32", "plain_bf16", "file"}
    for measured in summary["inference"].values():
        assert 0 < measured["latency_ms"]["p50"] <= measured["latency_ms"]["p95"]
        assert measured["tokens_per_second"] > 0
        assert measured["memory_bytes"] > 0
    assert summary["inference"]["plain_bf16"]["memory_bytes"] < summary["inference"]["plain_fp32"]["memory_bytes"]
    assert summary["reference"]["bytes"] > summary["bytes"]["weights"]
    # Stages of the same shapes are the same model to time: what was timed alone met another load of the machine.
    plain, stages = summary["inference"]["plain_fp32"]["latency_ms"]["p50"], summary["stages"]
    assert {row["latency_ms"] for row in stages if row["name"] not in ("reference", "file", stages[-2]["name"])} == {
        plain
    }


@pytest.mark.parametrize(
    ("metric", "before", "after", "broken"),
    [
        ("bleu", 30.0, 28.5, True),
        ("bleu", 30.0, 31.5, False),
        ("bleu", 30.0, 29.5, False),
        ("loss", 2.0, 3.5, True),
        ("loss", 2.0, 0.5, False),
    ],
)
def test_a_drop_is_a_loss_of_what_is_better_when_higher_and_a_gain_of_errors(metric, before, after, broken):
    from tfx.config.compose import compose
    from tfx.record.summary import Stage
    from tfx.run.measure import BrokenInvariantError, Measurer

    metrics = [] if metric == "loss" else [metric]
    config = compose([*SMALL, f"dataset.metrics={metrics}", "max_quality_drop=1.0"])
    measurer = Measurer(config, None, torch.device("cpu"), None, None)
    measurer.stages = [Stage("trained", {metric: before}, 2), Stage("prune", {metric: after}, 1)]
    if broken:
        with pytest.raises(BrokenInvariantError, match=f"prune lost 1.5 of {metric}"):
            measurer._check_drop("prune")
    else:
        measurer._check_drop("prune")


def test_a_drop_from_a_model_that_is_still_training_is_refused_before(folder, capsys):
    run = folder / "drop-aware"
    words = [*SMALL, "+technique=prune", "max_quality_drop=0.1", "trainer.budget.steps=4", f"hydra.run.dir={run}"]
    assert main(["train", *words]) == 2
    assert "max_quality_drop=0.1 is measured against a reference, and this run has none" in capsys.readouterr().err
    assert not run.exists()


@pytest.mark.parametrize(("policy", "status"), [("stop", 1), ("mark", 0)])
def test_a_run_that_lost_too_much_is_stopped_or_marked(folder, dense, policy, status, capsys):
    run = folder / f"drop-{policy}"
    words = [f"init_from={dense}", "+technique=quantize", "technique.quantize.bits=2", "trainer.budget.steps=0"]
    words += ["dataset.metrics=[]", "max_quality_drop=0.0001", f"on_quality_drop={policy}", "evaluation=greedy"]
    assert main(["train", *words, "evaluation.latency_inputs=2", f"hydra.run.dir={run}"]) == status
    summary = summary_of(run)
    said = summary["error"] if policy == "stop" else summary["quality_drops"][0]
    assert "max_quality_drop=0.0001" in said
    assert not (run / ".stage.safetensors").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["init_from={dense}", "model=seq2seq_small"], ["model.encoder_layers=6", "leave it out"]),
        (["init_from={dense}", "model.width=32"], ["model.width=32", "leave it out"]),
        (["init_from={dense}", "dataset.tokenizer.kind=char"], ["tokenizer"]),
        (["init_from=nowhere"], ["nowhere", "does not exist"]),
        (["reference=nowhere"], ["nowhere", "does not exist"]),
        (["+technique=shuffle", "trainer.budget.steps=0"], ["shuffle", "acts only while training"]),
        (["+technique=quantize", "technique.quantize.bits=9"], ["technique.quantize.bits=9"]),
        (["+technique=quantize", "technique.quantize.group=48"], ["48", "does not divide"]),
        ([STACK, "technique.prune.structure.heads=0.5"], ["group=64", "does not divide the 32 inputs"]),
        (
            ["+technique=prune", "technique.prune.pattern=2:4", "model.ffn_width=3"],
            ["4 does not divide the 3 inputs", "technique.prune.skip"],
        ),
        (["+technique=prune", "technique.prune.sparsity=1"], ["technique.prune.sparsity=1"]),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_nothing(folder, dense, overrides, words, capsys):
    run = folder / "refused"
    filled = [word.format(dense=dense) for word in overrides]
    own = [] if any("init_from" in word for word in filled) else [*SMALL, *PAIRS]
    assert main(["train", *own, "evaluation=greedy", *filled, f"hydra.run.dir={run}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in error for word in words), error
    assert not run.exists()


def test_rates_may_change_where_a_model_is_taken_over(folder, dense):
    words = [f"init_from={dense}", "model.dropout=0.3", "trainer.budget.steps=1", "evaluation=greedy"]
    assert main(["train", *words, "evaluation.latency_inputs=2", f"hydra.run.dir={folder / 'rates'}"]) == 0
    saved = (folder / "rates" / "config.yaml").read_text()
    assert "dropout: 0.3" in saved
    assert "width: 64" in saved


def test_what_an_experiment_says_of_model_and_data_counts_where_a_model_is_taken_over(folder, dense, capsys):
    place = folder / "own" / "experiment"
    place.mkdir(parents=True)
    head = f"# @package _global_\ninit_from: {dense}\ntrainer: {{budget: {{steps: 1}}}}\n"
    (place / "inner.yaml").write_text("# @package _global_\nmodel: {width: 16}\n")
    run = folder / "recipe"
    words = ["experiment=recipe", "evaluation=greedy", "evaluation.latency_inputs=2", f"hydra.run.dir={run}"]
    for setting, said in (
        ("model: {width: 32}", "model.width=32"),
        ("model: {width: 128}", "model.width=128"),  # the default, and another than the run's
        ("defaults: [override /model: seq2seq_small]", "model.encoder_layers=6"),
        ("defaults: [inner]", "model.width=16"),
        ("dataset: {tokenizer: {kind: char}}", "dataset.tokenizer.kind"),
    ):
        (place / "recipe.yaml").write_text(f"{head}{setting}\n")
        assert main(["train", *words, "--config-dir", str(place.parent)]) == 2
        assert said in capsys.readouterr().err
        assert not run.exists()
    (place / "recipe.yaml").write_text(f"{head}model: {{dropout: 0.3}}\ndataset: {{batch_tokens: 300, name: mine}}\n")
    assert main(["train", *words, "--config-dir", str(place.parent)]) == 0
    saved = (run / "config.yaml").read_text()
    for setting in ("dropout: 0.3", "width: 64", "batch_tokens: 300", "name: mine", "train: 40"):
        assert setting in saved, setting


def test_a_default_that_an_experiment_names_counts_and_one_that_nobody_names_does_not(folder, dense):
    from tfx.config.compose import compose

    start = folder / "named-default"
    words = [f"init_from={dense}", "model.dropout=0.3", "dataset.batch_tokens=300", "trainer.budget.steps=0"]
    assert main(["train", *words, "evaluation=greedy", "evaluation.latency_inputs=2", f"hydra.run.dir={start}"]) == 0
    config = compose([f"init_from={start}", "+technique=[distill,quantize]", "experiment=small"])
    assert (config.model.dropout, config.dataset.batch_tokens) == (0.05, 300)
    config = compose([f"init_from={start}", "dataset.name=mine"])
    assert (config.model.dropout, config.dataset.batch_tokens, config.dataset.limit.train) == (0.3, 300, 40)
    assert config.dataset.name == "mine"


@pytest.mark.parametrize("form", ["technique", "+technique"])
def test_an_experiment_sets_the_techniques_in_whichever_form_they_are_named(form):
    from tfx.config.compose import compose

    config = compose([f"{form}=[distill,prune,quantize]", "experiment=demo"])
    assert config.technique["quantize"]["bits"] == 3
    assert config.technique["prune"]["end"] == 0.5
    config = compose([f"{form}=[distill,quantize]", "experiment=small", "technique.quantize.rate=1.5"])
    assert config.technique["quantize"]["rate"] == 1.5
    assert config.technique["distill"]["sequence_level"]
    assert (config.schedule.name, config.optimizer.weight_decay, config.model.dropout) == ("linear", 1.0, 0.05)


def test_tokens_that_narrower_data_never_use_leave_model_tokenizer_and_file(folder, capsys):
    wide, narrow = folder / "wide", folder / "narrow"
    for path, words in ((wide, 60), (narrow, 12)):
        path.mkdir()
        for split, start in (("train", 0), ("valid", 3), ("test", 5)):
            lines = [f"word{i % words} and word{(i * 7 + start) % words} meet" for i in range(100)]
            (path / f"{split}.source").write_text("\n".join(lines) + "\n")
            (path / f"{split}.target").write_text("\n".join(line.upper() for line in lines) + "\n")
    data = ["dataset=parallel", "dataset.source=source", "dataset.target=target"]
    small = ["model.width=16", "model.heads=2", "model.ffn_width=32", "model.encoder_layers=1"]
    quick = ["evaluation.latency_inputs=2", "evaluation.beam=2", "trainer.budget.steps=4"]
    model = [*small, "model.decoder_layers=1", "dataset.tokenizer.vocab_size=420"]
    assert main(["train", *data, f"dataset.path={wide}", *model, *quick, f"hydra.run.dir={folder / 'w'}"]) == 0
    reduce = ["technique.prune.structure.vocabulary=true", "technique.quantize.granularity=channel"]
    stack = ["+technique=[distill,prune,quantize]", *reduce]
    words = [f"init_from={folder / 'w'}", *data, f"dataset.path={narrow}", *stack, *quick]
    capsys.readouterr()
    assert main(["train", *words, f"hydra.run.dir={folder / 'n'}"]) == 0
    assert "tokens are never used" in " ".join(capsys.readouterr().err.split())
    summary = json.loads((folder / "n" / "summary.json").read_text())
    before, after = (tfx.load(folder / name) for name in ("w", "n"))
    gone = before.tokenizer.vocab_size - after.tokenizer.vocab_size
    assert gone > 0
    assert summary["evidence"]["prune"]["tokens_removed"] == gone
    assert after.model.architecture.vocab_size == after.tokenizer.vocab_size
    assert after.model.embedding.weight.shape[0] == after.tokenizer.vocab_size
    # The size is compared with the model before anything was removed.
    assert (
        summary["bytes"]["dense_fp32"] == json.loads((folder / "w" / "summary.json").read_text())["bytes"]["dense_fp32"]
    )
    text = ["word3 and word5 meet"]
    pieces = [[tok.token(i) for i in tok.encode(text)[0]] for tok in (before.tokenizer, after.tokenizer)]
    assert pieces[0] == pieces[1]
    assert main(["generate", str(folder / "n"), "word3 and word5 meet", "ñ"]) == 0
    # Nothing is left to remove: a technique that does nothing fails the run.
    again = [f"init_from={folder / 'n'}", "+technique=prune", "technique.prune.structure.vocabulary=true"]
    again += ["technique.prune.sparsity=0", *quick, f"hydra.run.dir={folder / 'nothing-left'}"]
    assert main(["train", *again]) == 1
