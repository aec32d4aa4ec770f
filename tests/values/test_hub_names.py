import pytest

from qarat.ground.errors import UserError
from qarat.values.hub_names import parse_hub_name


@pytest.mark.parametrize(
    "name",
    [
        "own-er/na.me_1",
        "own-er/na.me_1/",
        "hub:own-er/na.me_1",
        "https://huggingface.co/own-er/na.me_1",
        "https://www.huggingface.co/own-er/na.me_1/",
        "http://hf.co/own-er/na.me_1?library=transformers",
        "huggingface.co/own-er/na.me_1#usage",
        "hf.co/own-er/na.me_1",
        "hf://own-er/na.me_1",
        "HTTPS://HuggingFace.co/own-er/na.me_1",
        "https://huggingface.co/own-er/na.me_1.git",
        "git@hf.co:own-er/na.me_1.git",
        "ssh://git@hf.co/own-er/na.me_1",
        "https://huggingface.co/own-er/na.me_1/discussions/12",
    ],
)
def test_spellings_of_a_hub_id(name: str):
    assert parse_hub_name(name) == ("own-er/na.me_1", None)


@pytest.mark.parametrize(
    "name",
    [
        "a/b@v1.0",
        "hub:a/b@v1.0",
        "hf://a/b@v1.0",
        "https://huggingface.co/a/b/tree/v1.0",
        "https://huggingface.co/a/b/blob/v1.0/config.json",
        "hf.co/a/b/resolve/v1.0/model.safetensors?download=true",
    ],
)
def test_spellings_of_a_revision(name: str):
    assert parse_hub_name(name) == ("a/b", "v1.0")


@pytest.mark.parametrize(
    "name",
    [
        "a/b@refs/pr/3",
        "https://huggingface.co/a/b/tree/refs/pr/3",
        "https://huggingface.co/a/b/blob/refs%2Fpr%2F3/config.json",
    ],
)
def test_revisions_with_slashes(name: str):
    assert parse_hub_name(name) == ("a/b", "refs/pr/3")


@pytest.mark.parametrize("kind", ["raw", "commit", "commits", "edit", "blame"])
def test_pages_of_a_revision(kind: str):
    assert parse_hub_name(f"https://huggingface.co/a/b/{kind}/v1.0/README.md") == ("a/b", "v1.0")


@pytest.mark.parametrize("name", ["gpt2", "./a", "/a/b", "a/b/c", "../a/b"])
def test_what_is_no_hub_name_stays_as_it_is(name: str):
    assert parse_hub_name(name) == (name, None)


@pytest.mark.parametrize(
    "name",
    [
        "https://example.com/a/b",
        "https://huggingface.co/datasets/a/b",
        "https://huggingface.co/datasets/a",
        "https://huggingface.co/papers/2504.21553",
        "https://huggingface.co/docs/transformers",
        "https://huggingface.co/gpt2/tree/main",
        "hf.co/own/name:Q4_K_M",
    ],
)
def test_addresses_that_are_no_models(name: str):
    with pytest.raises(UserError, match="is no model's address on the hub; give OWNER/NAME"):
        parse_hub_name(name)
