from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from qarat.testing import plant_spike, pretended_cuda, tiny_checkpoint, tiny_documents, tiny_tokenizer

TOKENS = torch.arange(2, 42).reshape(2, 20)


@pytest.mark.parametrize("shards", [None, "40KB"])
@pytest.mark.parametrize("factor", [2.0, 1000.0])
@torch.no_grad()
def test_a_planted_spike_preserves_the_function(shards: str | None, factor: float, tmp_path: Path):
    folder = tiny_checkpoint(tmp_path, max_shard_size=shards, mlp_bias=True)
    before = AutoModelForCausalLM.from_pretrained(folder)
    channel_inputs = []
    assert plant_spike(folder, 1, 5, factor) == folder
    after = AutoModelForCausalLM.from_pretrained(folder)
    for model in (before, after):
        down = model.model.layers[1].mlp.down_proj
        down.register_forward_pre_hook(lambda _, arguments: channel_inputs.append(arguments[0]))
    expected, logits = before(TOKENS).logits, after(TOKENS).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    plain, spiked = channel_inputs
    torch.testing.assert_close(spiked[..., 5], plain[..., 5] * factor, rtol=1e-5, atol=1e-5 * factor)


def test_planting_in_a_state_dict_leaves_it_alone(tiny_llama: Path):
    state = load_file(tiny_llama / "model.safetensors")
    kept = {name: tensor.clone() for name, tensor in state.items()}
    planted = plant_spike(state, 0, 3, 4.0)
    assert all(torch.equal(state[name], kept[name]) for name in kept)
    changed = {name for name in kept if not torch.equal(planted[name], kept[name])}
    assert changed == {"model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"}


def test_checkpoints_are_the_same_bytes_for_the_same_seed(tmp_path: Path):
    folders = [tiny_checkpoint(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    a, b, c = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert a == b != c


def test_documents_are_what_the_tokenizer_knows():
    documents = tiny_documents(5, seed=3, characters=120)
    assert documents == tiny_documents(5, seed=3, characters=120)
    assert len({document.text for document in (*documents, *tiny_documents(5, seed=4))}) == 10
    tokenizer = tiny_tokenizer()
    for document in documents:
        ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
        assert len(ids) == 120
        assert min(ids) > 1
        assert tokenizer.decode(ids) == document.text


def test_a_tokenizer_needs_room_for_the_letters():
    assert len(tiny_tokenizer(40)) == 40
    with pytest.raises(ValueError, match="letters"):
        tiny_tokenizer(28)


no_real_device = pytest.mark.skipif(torch.cuda.is_available(), reason="the CUDA device of this machine is no pretence")


@no_real_device
def test_a_pretended_device_refuses_what_cuda_would():
    with pretended_cuda():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert there.device.type == "cuda"
        assert torch.tensor([1.0], device=there.device).is_cuda
        for mixed in (
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: torch.where(there > 0, there, here),
            lambda: torch.searchsorted(there, here),
            lambda: here[there.long()],
        ):
            with pytest.raises(RuntimeError, match=r"of the CPU|same device"):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
    with pytest.raises(RuntimeError, match="gone"):
        there.add(1)


@no_real_device
def test_a_pretended_device_takes_what_cuda_does():
    with pretended_cuda():
        there, here = torch.arange(3.0).to("cuda"), torch.arange(3.0)
        assert (there * 2 + torch.tensor(1.0)).tolist() == [1, 3, 5]
        assert there[torch.tensor([2, 0])].tolist() == [2, 0]
        here[:] = there + here.to(there)
        assert here.tolist() == [0, 2, 4]
        there[torch.tensor([1])] = 7.0
        assert there.cpu().equal(torch.tensor([0.0, 7.0, 2.0]))
        there.requires_grad_(True)
        (gradient,) = torch.autograd.grad(there.square().sum(), there)
        assert gradient.is_cuda
        assert gradient.tolist() == [0, 14, 4]


@no_real_device
def test_a_pretended_device_divides_by_numbers_as_cuda_does():
    x = torch.arange(1.0, 1000.0)
    with pretended_cuda():
        there = x.to("cuda")
        assert (there / 127.0).cpu().equal(x * (1 / torch.tensor(127.0)))
        assert (there / there.new_full((), 127.0)).cpu().equal(x / 127.0)
    assert not (x * (1 / torch.tensor(127.0))).equal(x / 127.0)
