import itertools

from qarat.model.opening import open_model
from qarat.model.texts import Document, bundled_documents
from qarat.stages.measure.tasks.code_continuation import CHOICES, CONTEXT, CONTINUATION, STRIDE, make_items


def test_every_item_is_cut_from_its_file():
    documents = bundled_documents("report")
    texts = {d.source: d.text for d in documents}
    items = make_items(documents)
    assert len(items) > 1000
    for item in items:
        text = texts[item.source]
        assert len(item.context) == CONTEXT
        assert len(set(item.choices)) == CHOICES
        assert {len(c) for c in item.choices} == {CONTINUATION}
        assert item.context + item.choices[item.answer] in text
        assert all(c in text for c in item.choices)
        assert item.context.endswith("\n")


def test_the_answer_is_at_no_place_more_often_than_chance():
    counts = [0] * CHOICES
    items = make_items(bundled_documents("report"))
    for item in items:
        counts[item.answer] += 1
    expected = len(items) / CHOICES
    assert max(abs(c - expected) for c in counts) < 4 * (expected * (1 - 1 / CHOICES)) ** 0.5


def test_items_fit_the_reference_models_windows():
    model = open_model("py-128")
    texts = [i.context + c for i in make_items(bundled_documents("report")) for c in i.choices]
    assert max(len(ids) for ids in model.tokenizer(texts).input_ids) <= model.length


def test_items_of_a_file_do_not_overlap():
    document = bundled_documents("report")[0]
    items = make_items([document])
    starts = [document.text.index(i.context + i.choices[i.answer]) for i in items]
    assert all(b - a >= STRIDE for a, b in itertools.pairwise(starts))


def test_the_same_seed_asks_the_same_and_another_does_not():
    documents = bundled_documents("report")[:3]
    assert make_items(documents) == make_items(documents)
    assert make_items(documents) != make_items(documents, seed=1)
    # The items of a file do not depend on the files before it.
    assert make_items(documents)[-1] == make_items(documents[2:])[-1]


def test_a_file_that_is_too_short_asks_nothing():
    assert make_items([Document("a.py", "x = 1\n" * 30)]) == ()
