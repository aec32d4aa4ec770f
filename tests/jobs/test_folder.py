"""Workspace: files are whole or untouched, and a run goes on where it stopped and never trusts what it cannot check."""

import errno
import fcntl
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from qarat.ground.disk import check_file, check_folder, hash_json, new_folder, put_into_place, write_whole
from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.jobs.folder import Run, kind_of, read_command, read_manifest

MARK = "mark.json"
FULL = Path("/dev/full")  # writes to it fail as on a full disk
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def begun(out: Path, *, overwrite: bool = False) -> Run:
    run = Run(out, "run", overwrite=overwrite)
    run.begin()
    return run


class Recipe:
    """Three steps, each reading what the one before wrote; counts what is really done.

    Attributes:
        fail: Name of a step to fail in, after it has written half its output.
        done: Names of the steps worked on, in order.
    """

    def __init__(self, number: int = 1, fail: str = "") -> None:
        self.number, self.fail = number, fail
        self.done: list[str] = []

    def execute(self, run: Run) -> None:
        for name, before in (("one", None), ("two", "one"), ("three", "two")):
            key = {"number": self.number} if name == "one" else {}
            run.step(name, key, [f"{name}.txt"], self._work(run, name, before), after=[before] if before else [])

    def _work(self, run: Run, name: str, before: str | None) -> Callable[[], None]:
        def work() -> None:
            self.done.append(name)
            if name == self.fail:
                run.path(f"{name}.txt").write_text("half")
                raise KeyboardInterrupt
            text = run.path(f"{before}.txt").read_text() if before else str(self.number)
            write_whole(run.path(f"{name}.txt"), f"{name}({text})")

        return work


# ---------------------------------------------------------------- files


def test_a_file_is_written_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    write_whole(path, "☃")
    assert path.read_bytes() == "☃".encode()
    write_whole(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


@needs_full
def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    (tmp_path / ".file.txt.partial").symlink_to(FULL)
    with pytest.raises(UserError, match=r"cannot write .*file\.txt: no space left; free some"):
        write_whole(path, "new")
    assert tree(tmp_path) == {"file.txt": b"old"}


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "full"), "no space left"),
        (OSError(errno.EDQUOT, "quota"), "quota"),
        (PermissionError(errno.EACCES, "no"), "no permission"),
        (OSError(errno.EROFS, "ro"), "read-only"),
        (OSError(errno.EIO, "strange"), "strange"),
    ],
)
def test_a_failure_leaves_what_was_there_and_no_partial_file(
    call: str, error: OSError, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    path = tmp_path / "file.txt"
    path.write_text("old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(UserError, match=message):
        write_whole(path, "new")
    assert tree(tmp_path) == {"file.txt": b"old"}


def test_an_interrupt_leaves_what_was_there_and_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "file.txt"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    assert tree(tmp_path) == {"file.txt": b"old"}


def test_a_file_in_the_place_of_a_folder_is_said_to_be_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x.json", tmp_path / "file" / "y" / "x.json"):
        with pytest.raises(UserError, match="cannot write"):
            write_whole(path, "")
        with pytest.raises(UserError, match="file is no folder"):
            check_file(path, overwrite=False)
    with pytest.raises(UserError, match="it is a folder"):
        check_file(tmp_path, overwrite=True)
    check_file(tmp_path / "new" / "x.json", overwrite=False)
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------- runs


def test_a_run_is_made_beside_its_place(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    run = Run(out, "run")
    assert list(tmp_path.iterdir()) == []  # nothing is written before it begins
    run.begin(command="qarat run")
    Recipe().execute(run)
    assert not out.exists()
    run.finish()
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert (out / "three.txt").read_text() == "three(two(one(1)))"
    assert read_command(out) == "qarat run"
    assert read_manifest(out).steps.keys() == {"one", "two", "three"}


def test_steps_are_not_repeated(tmp_path: Path) -> None:
    Recipe().execute(begun(tmp_path / "out"))
    again = Recipe()
    again.execute(begun(tmp_path / "out"))
    assert again.done == []


@pytest.mark.parametrize("step", ["one", "two", "three"])
@pytest.mark.parametrize("damage", ["change", "delete"])
def test_a_step_is_repeated_if_its_file_was_touched(step: str, damage: str, tmp_path: Path) -> None:
    run = begun(tmp_path / "out")
    Recipe().execute(run)
    path = run.path(f"{step}.txt")
    whole = tree(run.folder)
    if damage == "change":
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    else:
        path.unlink()
    again = Recipe()
    again.execute(begun(tmp_path / "out"))
    assert again.done == [step]  # the same bytes came out, so what follows still holds
    for name in ("one.txt", "two.txt", "three.txt", "manifest.json"):
        assert run.path(name).read_bytes() == whole[name]


def test_another_key_repeats_what_depends_on_it(tmp_path: Path) -> None:
    Recipe(1).execute(begun(tmp_path / "out"))
    other = Recipe(2)
    run = begun(tmp_path / "out")
    other.execute(run)
    assert other.done == ["one", "two", "three"]
    assert run.path("three.txt").read_text() == "three(two(one(2)))"


def test_another_key_alone_repeats_its_step(tmp_path: Path) -> None:
    run = begun(tmp_path / "out")
    done: list[int] = []

    def work(number: int) -> None:
        done.append(number)
        run.path("a").write_text(str(number))

    for number, key in enumerate([{"a": 1, "b": [2]}, {"b": [2], "a": 1}, {"a": 1, "b": [3]}, {"a": 1, "b": [2]}]):
        run.step("step", key, ["a"], lambda number=number: work(number))
    assert done == [0, 2, 3]


@pytest.mark.parametrize("fail", ["one", "two", "three"])
def test_a_run_goes_on_after_an_interrupt_and_ends_with_the_same_bytes(fail: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Recipe(fail=fail).execute(begun(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    again = Recipe()
    run = begun(tmp_path / "out")
    again.execute(run)
    run.finish()
    steps = ["one", "two", "three"]
    assert again.done == steps[steps.index(fail) :]
    straight = begun(tmp_path / "straight")
    Recipe().execute(straight)
    straight.finish()
    resumed, expected = tree(tmp_path / "out"), tree(tmp_path / "straight")
    assert resumed.pop("log.jsonl") != expected.pop("log.jsonl")
    assert resumed == expected


def test_half_a_file_of_an_interrupted_step_is_not_trusted(tmp_path: Path) -> None:
    Recipe().execute(begun(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        Recipe(number=2, fail="one").execute(begun(tmp_path / "out"))
    back = Recipe(1)
    run = begun(tmp_path / "out")
    back.execute(run)
    assert back.done == ["one"]
    assert run.path("one.txt").read_text() == "one(1)"


@pytest.mark.parametrize("change", ["content", "name", "more", "less"])
def test_a_folder_is_an_output_too(change: str, tmp_path: Path) -> None:
    run = begun(tmp_path / "out")
    done = []

    def work() -> None:
        done.append(1)
        for name in ("a", "deep/b"):
            write_whole(run.path(f"model/{name}"), name)

    assert run.step("save", {}, ["model"], work)
    assert not run.step("save", {}, ["model"], work)
    if change == "content":
        run.path("model/deep/b").write_text("c")
    elif change == "name":
        run.path("model/deep/b").rename(run.path("model/deep/c"))
    elif change == "more":
        run.path("model/c").write_text("")
    else:
        run.path("model/a").unlink()
    assert run.step("save", {}, ["model"], work)
    assert len(done) == 2


def test_a_step_that_does_not_write_what_it_says_is_an_error(tmp_path: Path) -> None:
    run = begun(tmp_path / "out")
    with pytest.raises(RuntimeError, match=r"step save did not write b\.txt"):
        run.step("save", {}, ["a.txt", "b.txt"], lambda: write_whole(run.path("a.txt"), ""))
    assert "save" not in run.steps


def test_an_output_that_was_never_there_is_not_taken_as_unchanged(tmp_path: Path) -> None:
    run = begun(tmp_path / "out")
    run.step("save", {}, ["a.txt"], lambda: write_whole(run.path("a.txt"), ""))
    assert run.step("save", {}, ["a.txt", "b.txt"], lambda: write_whole(run.path("b.txt"), ""))


def test_the_log_says_what_was_reused(tmp_path: Path) -> None:
    for _ in range(2):
        run = begun(tmp_path / "out")
        Recipe().execute(run)
    rows = [json.loads(line) for line in run.path("log.jsonl").read_text().splitlines()]
    assert [(r.get("step"), r.get("reused", False)) for r in rows if "step" in r] == [
        (name, again) for again in (False, True) for name in ("one", "two", "three")
    ]
    assert all("time" in r for r in rows)


def test_the_last_command_is_read_from_a_log_cut_short(tmp_path: Path) -> None:
    for command in ("qarat run a", "qarat run b"):
        run = Run(tmp_path / "out", "run")
        run.begin(command=command)
    with run.path("log.jsonl").open("a") as file:
        file.write('{"command": "qar')
    assert read_command(run.folder) == "qarat run b"
    assert read_command(tmp_path) == ""


@pytest.mark.parametrize("data", [b"", b"{", b'{"one": 1}', b"[]", b'{"one": {"key": "\xff"}}'])
def test_a_damaged_manifest_is_refused_with_a_remedy(data: bytes, tmp_path: Path) -> None:
    Recipe().execute(begun(tmp_path / "out"))
    (tmp_path / "out.partial" / "manifest.json").write_bytes(data)
    with pytest.raises(UserError, match=r"manifest\.json is damaged; delete .*out\.partial"):
        begun(tmp_path / "out")


def test_a_folder_of_another_kind_is_not_gone_on_with(tmp_path: Path) -> None:
    Recipe().execute(begun(tmp_path / "out"))
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"out\.partial is a run, no search; move it, or give another `out`"):
        Run(tmp_path / "out", "search").begin()
    assert tree(tmp_path) == before
    assert kind_of(tmp_path / "out.partial") == "run"
    assert kind_of(tmp_path) == ""


@pytest.mark.parametrize("steps", [{}, {"one": {"key": "k", "one.txt": "h"}}])
def test_a_manifest_that_does_not_say_its_kind_is_refused(steps: dict[str, dict[str, str]], tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "manifest.json").write_text(json.dumps(steps))
    with pytest.raises(UserError, match=r"out\.partial is of qarat 0\.1: .* run its command again"):
        begun(tmp_path / "out")


def test_a_folder_without_a_manifest_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        read_manifest(tmp_path)


# ---------------------------------------------------------------- replacing


def finished(out: Path, number: int, *, overwrite: bool = False) -> None:
    run = begun(out, overwrite=overwrite)
    Recipe(number).execute(run)
    run.finish()


def test_an_existing_run_is_not_replaced_unasked(tmp_path: Path) -> None:
    finished(tmp_path / "out", 1)
    before = tree(tmp_path)
    with pytest.raises(UserError, match="exists already; give another `out`, or `overwrite`"):
        Run(tmp_path / "out", "run")
    assert tree(tmp_path) == before


def test_an_older_run_is_replaced_only_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    finished(out, 1)
    old = tree(out)
    run = begun(out, overwrite=True)
    Recipe(2).execute(run)
    assert tree(out) == old
    run.finish()
    assert (out / "one.txt").read_text() == "one(2)"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_failed_rename_keeps_both_the_old_and_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    finished(out, 1)
    run = begun(out, overwrite=True)
    Recipe(2).execute(run)
    calls = []

    def replace(source: Path, target: Path) -> None:
        calls.append(target)
        if target == out:
            raise OSError(errno.EIO, "interrupted")
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(UserError, match="interrupted"):
            run.finish()
    texts = {name: data for name, data in tree(tmp_path).items() if name.endswith("one.txt")}
    assert sorted(texts.values()) == [b"one(1)", b"one(2)"]
    # The same command again puts the new one into place.
    again, last = Recipe(2), begun(out, overwrite=True)
    again.execute(last)
    last.finish()
    assert again.done == []
    assert (out / "one.txt").read_text() == "one(2)"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("place", ["out", "out.partial", "out.replaced"])
def test_what_qarat_did_not_write_is_never_replaced(place: str, tmp_path: Path) -> None:
    (tmp_path / place).mkdir()
    (tmp_path / place / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=f"{place} is"):
        Run(tmp_path / "out", "run", overwrite=True)
    assert tree(tmp_path) == {f"{place}/thesis.tex": b"years of work"}


def test_a_file_in_the_way_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="out is not from this command"):
        Run(tmp_path / "out", "run", overwrite=True)
    with pytest.raises(UserError, match="is no folder"):
        Run(tmp_path / "out" / "deeper", "run")


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with suppress(KeyboardInterrupt), new_folder(out, MARK) as folder:
        write_whole(folder / MARK, "half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    for text in ("first", "second"):
        with new_folder(out, MARK) as folder:
            assert list(folder.iterdir()) == []
            write_whole(folder / MARK, text)
        assert tree(tmp_path) == {f"out/{MARK}": text.encode()}
    with pytest.raises(UserError, match="strange"), new_folder(out, MARK):
        raise OSError(errno.EIO, "strange")
    assert tree(tmp_path) == {f"out/{MARK}": b"second"}


def test_one_command_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    run, other = Run(tmp_path / "out", "run"), Run(tmp_path / "out", "run")
    refusal = r"another command is at work in .*out\.partial; let it end .*, or give another `out`"
    with run.work():
        Recipe().execute(run)
        before = tree(tmp_path)
        with pytest.raises(UserError, match=refusal), other.work():
            pass
        with pytest.raises(UserError, match=refusal), new_folder(tmp_path / "out", Run.MANIFEST):
            pass
        assert tree(tmp_path) == before
    with other.work():  # what the first leaves, the next goes on with
        assert set(other.steps) == set(run.steps)


def test_a_file_system_without_locks_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with Run(tmp_path / "out", "run").work():
        pass
    assert (tmp_path / "out.partial" / "manifest.json").is_file()


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    check_folder(tmp_path / "out", MARK, overwrite=True)
    with new_folder(tmp_path / "out", MARK) as folder:
        write_whole(folder / MARK, "")
    assert tree(tmp_path) == {f"out/{MARK}": b""}


def test_the_mark_is_deleted_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deletion cut short leaves a folder that is still known as ours."""
    out, old = tmp_path / "out", tmp_path / "out.replaced"
    for folder in (tmp_path / "out.partial", out):
        for name in (MARK, "a", "z"):
            write_whole(folder / name, name)

    unlink = Path.unlink

    def interrupt(path: Path, **more: bool) -> None:
        if path == old / MARK:
            raise KeyboardInterrupt
        unlink(path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", interrupt)
        with pytest.raises(KeyboardInterrupt):
            put_into_place(out, MARK)
    assert tree(old) == {MARK: MARK.encode()}
    assert len(tree(out)) == 3
    check_folder(out, MARK, overwrite=True)


# ---------------------------------------------------------------- small things


def test_hashes_do_not_depend_on_the_order_of_keys() -> None:
    assert hash_json({"a": 1, "b": {"c": 2, "d": 3}}) == hash_json({"b": {"d": 3, "c": 2}, "a": 1})
    assert hash_json([1, 2]) != hash_json([2, 1])


def test_the_runtime_knows_its_bounds() -> None:
    assert Runtime(memory=5).memory_bytes() == 5
    free = Runtime().memory_bytes()
    assert 0 < free < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert Runtime(dtype="bfloat16").torch_dtype is torch.bfloat16
