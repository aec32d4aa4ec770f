from qarat.values.fingerprints import brief, join, source_of, spellings_of, transforms_of

SOURCE = "ab" * 32


def test_a_fingerprint_comes_apart_as_it_was_joined():
    words = ("smooth/0.5@0123456789ab", "hadamard")
    assert source_of(join(SOURCE, words)) == SOURCE
    assert transforms_of(join(SOURCE, words)) == words
    assert spellings_of(join(SOURCE, words)) == ("smooth/0.5", "hadamard")


def test_a_checkpoint_goes_by_its_hash_alone():
    assert join(SOURCE, ()) == SOURCE
    assert source_of(SOURCE) == SOURCE
    assert transforms_of(SOURCE) == ()


def test_messages_keep_what_was_done():
    assert brief(SOURCE) == "abababababab…"
    assert brief(join(SOURCE, ["hadamard"])) == "abababababab…+hadamard"
