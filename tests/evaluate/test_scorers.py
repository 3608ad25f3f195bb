import pytest

from e2ray.evaluate.scorers import best_of, contained, first_integer


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("73914", True),
        (" is 73914. Remember it", True),
        ("73914 or 10000", True),
        ("10000 or 73914", False),  # the first one counts
        ("739145", False),
        ("173914", False),
        ("7391", False),
        ("7 3 9 1 4", False),
        ("073914", False),
        ("seven", False),
        ("", False),
        ("-73914", True),
        ("x73914y", True),
    ],
)
def test_the_first_integer_is_the_key_or_it_is_not(text, found):
    assert first_integer(text, "73914") is found


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("The numbers are 123, 456 and 789.", 1.0),
        ("789 456 123", 1.0),
        ("123, 456", 2 / 3),
        ("123 123 123", 1 / 3),
        ("1234567890", 0.0),
        ("0123 4560 x789", 0.0),
        ("", 0.0),
    ],
)
def test_references_are_held_as_whole_words_in_any_order(text, share):
    assert contained(text, ["123", "456", "789"]) == pytest.approx(share)


def test_case_and_white_space_say_nothing():
    assert contained("The  OLD\nHouse", ["old house"]) == 1
    assert contained("STRASSE", ["straße"]) == 1


def test_signs_in_a_reference_are_letters_not_patterns():
    assert contained("axb", ["a.b"]) == 0
    assert contained("a.b", ["a.b"]) == 1
    assert contained("(x)", ["(x)"]) == 1
    assert contained("anything", [".*"]) == 0


def test_one_of_several_references_is_enough_for_an_answer():
    assert best_of("in Paris, I think", ["London", "paris"]) == 1
    assert best_of("in Parisian streets", ["London", "paris"]) == 0
    assert best_of("in Paris", []) == 0


def test_an_empty_reference_would_be_held_by_every_text():
    with pytest.raises(ValueError, match="references must not be empty"):
        contained("text", [])
    with pytest.raises(ValueError, match="a reference must say something"):
        contained("text", ["  "])
