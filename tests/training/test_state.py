"""A saved state comes back to the bit, and one that was cut or altered is never taken for good."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tfx.errors import UserError
from tfx.training.state import VERSION, DamagedStateError, StateSaver, load_state, newest_state, saved_states

VALUE = {
    "step": 7,
    "loss": 0.1 + 0.2,
    "none": None,
    "rows": [1, "two", {"three": torch.tensor([True, False])}],
    "weights": {
        "a/b": torch.randn(3, 4),
        "half": torch.randn(5).bfloat16(),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0),
    },
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def save(folder, step, value, keep=2):
    saver = StateSaver(folder, keep)
    saver.save(step, value)
    saver.close()
    return saved_states(folder)[0]


def test_a_state_comes_back_to_the_bit(tmp_path):
    assert same(VALUE, load_state(save(tmp_path, 7, VALUE)))


def test_the_last_few_are_kept_newest_first(tmp_path):
    for step in (1, 2, 10, 1_000_000_000):
        save(tmp_path, step, {"step": step})
    assert [load_state(path)["step"] for path in saved_states(tmp_path)] == [1_000_000_000, 10]


def test_tensors_that_share_memory_are_each_kept(tmp_path):
    shared = torch.arange(6.0)
    value = {"whole": shared, "part": shared[2:4], "again": shared}
    assert same(value, load_state(save(tmp_path, 1, value)))


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return save(tmp_path_factory.mktemp("state"), 7, VALUE).read_bytes()


@given(st.data())
def test_any_flipped_byte_and_any_cut_is_found(content, tmp_path_factory, data):
    at = data.draw(st.integers(0, len(content) - 1))
    flip = data.draw(st.integers(0, 255))
    altered = content[:at] + (bytes([content[at] ^ flip]) + content[at + 1 :] if flip else b"")
    path = tmp_path_factory.getbasetemp() / "altered.safetensors"
    path.write_bytes(altered)
    try:
        read = load_state(path)
    except (DamagedStateError, UserError):
        return
    assert same(VALUE, read)  # a byte that means nothing, such as a space of the header


def test_a_newer_version_is_refused_in_words(tmp_path):
    path = tmp_path / "step-1.safetensors"
    record = {"format_version": VERSION + 1, "sha256": "", "value": "{}"}
    save_file({}, path, {"tfx_state": json.dumps(record)})
    with pytest.raises(UserError, match="update tfx"):
        load_state(path)


def test_a_state_holds_the_moment_it_was_saved_at_and_tied_weights_once(tmp_path):
    weight = torch.zeros(1000)
    saver = StateSaver(tmp_path, 1)
    saver.save(1, {"embedding": weight, "output": weight})
    weight += 1  # the run goes on while the state is written
    saver.close()
    (path,) = saved_states(tmp_path)
    assert all(tensor.sum() == 0 for tensor in load_state(path).values())
    assert path.stat().st_size < 2 * 4000


def test_damaged_states_are_told_of_and_passed_over(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, {"step": step}, keep=3)
    newest, second, _ = saved_states(tmp_path)
    newest.write_bytes(newest.read_bytes()[:-1])
    second.write_bytes(b"")
    told = []
    assert newest_state(tmp_path, told.append) == {"step": 1}
    assert [str(newest) in told[0], str(second) in told[1]] == [True, True]
    assert len(saved_states(tmp_path)) == 1
    assert newest_state(tmp_path / "none", told.append) is None


def test_a_state_that_cannot_be_written_is_an_error_with_its_place(tmp_path):
    saver = StateSaver(tmp_path / "vanished" / "state", 1)
    saver.save(1, VALUE)
    with pytest.raises(OSError, match="vanished"):
        saver.wait()
    saver.close()
