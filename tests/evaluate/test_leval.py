import json

import pytest

from e2ray.config.base import SettingsError
from e2ray.evaluate.leval import (
    EXAMS,
    all_choices,
    chosen,
    first_line_holds,
    one_choice,
    output_of_code,
    questions,
    same_number,
    task,
    true_or_false,
)


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("A", "A"),
        (" B.", "B"),
        ("(C)", "C"),
        ("C) The moon", "C"),
        ("**D**", "D"),
        ("D: because of the moon", "D"),
        ("A - the first", "A"),
        ("A, because of the moon", "A"),
        ("B. The moon and A", "B"),
        ("D\nQuestion 2: A or B?", "D"),
        ("The answer is C.", "C"),
        ("So the correct answers are: A, C and D.", "ACD"),
        ("Answer:B", "B"),
        ("answer is (D)", "D"),
        ("AB", "AB"),
        ("A,B", "AB"),
        ("A and C", "AC"),
        ("A or B", "AB"),
        ("A-D", "AD"),
        ("A good one", ""),  # an article
        ("The answer is A good one", ""),
        ("the answer is a good one", ""),
        ("Because", ""),
        ("Dogs", ""),
        ("B is wrong", ""),
        ("The answer is not A", ""),
        ("None of A, B, C and D", ""),
        ("E", ""),
        ("ABCDE", ""),
        ("AA", ""),
        ("a", ""),
        ("A1", ""),
        ("", ""),
        ("\n\n", ""),
    ],
)
def test_a_choice_stands_beyond_doubt_or_is_none(text, letters):
    assert chosen(text) == set(letters)


@pytest.mark.parametrize(("text", "score"), [("B", 1.0), ("A or B", 0.0), ("ABCD", 0.0), ("A", 0.0), ("", 0.0)])
def test_one_letter_is_right_only_alone(text, score):
    assert one_choice(text, "B") == {"exact_match": score}


def test_no_answer_is_no_guess():
    assert one_choice("I cannot say.", "A") == {"exact_match": 0.0}


@pytest.mark.parametrize(
    ("text", "exact", "partial"),
    [("AC", 1, 1), ("C, A", 1, 1), ("A", 0, 0.25), ("AB", 0, 0), ("ABC", 0, 0), ("", 0, 0)],
)
def test_some_of_several_letters_are_a_quarter_and_a_wrong_one_is_nothing(text, exact, partial):
    assert all_choices(text, "AC") == {"exact_match": exact, "with_partial": partial}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("2 + 16 = 18\nThe answer is 18", True),
        ("The answer is: **$18**.\n\nQuestion: The answer is 7", True),
        ("The answer is 18.0", True),
        ("so it is 18 dollars", True),
        ("9 and 18", True),
        ("18 and 9", False),
        ("The answer is 180", False),
        ("The answer is 118", False),
        ("The answer is 18.5", False),
        ("The answer is -18", False),
        ("The answer is 18/2", False),
        ("The answer is 18,000", False),
        ("The answer is 18th", False),
        ("The answer is not 18", False),
        ("The answer is 7. Or 18.", False),
        ("I say 9.\n\n18", False),
        ("eighteen", False),
        ("", False),
    ],
)
def test_a_number_is_the_whole_number_that_was_named(text, right):
    assert same_number(text, "18") == {"exact_match": float(right)}


def test_numbers_are_compared_by_value():
    assert same_number("The answer is 1,800", "1800")["exact_match"] == 1
    assert same_number("The answer is 1800.00", "1,800")["exact_match"] == 1


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("The first topic was the role of art in society.", True),
        ("\n-\nThe Role of Art in Society", True),
        ("the role of art in societyx", False),
        ("the benefits of reading\nthe role of art in society", False),
        ("", False),
    ],
)
def test_a_topic_stands_in_the_first_line(text, right):
    assert first_line_holds(text, "the role of art in society") == {"exact_match": float(right)}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("The final output of the code is [1, 2, 3].", True),
        ("So f gives 7 and what is printed is [1,2, 3]", False),  # 2, 3 without a space is another token
        ("So f gives 7 and what is printed is [1, 2, 3]", True),
        ("[1, 2, 3] is not what comes out, which is rather a list of four numbers: 7", False),
        ("the final output is [1, 2, 3, 4]", False),
        ("the final output is [11, 2, 3]", False),
        ("", False),
    ],
)
def test_output_of_code_is_looked_for_where_it_is_named(text, right):
    assert output_of_code(text, "[1, 2, 3]") == {"exact_match": float(right)}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("True", True),
        (" true. The real world says False", True),
        ("**True**", True),
        ("False", False),
        ("True or False", False),
        ("True/False", False),
        ("Truely", False),
        ("Not true", False),
        ("It is True", False),
        ("", False),
    ],
)
def test_true_stands_first(text, right):
    assert true_or_false(text, "True [fact: False]") == {"exact_match": float(right)}


@pytest.mark.parametrize(("score", "reference"), [(one_choice, "E"), (same_number, "many"), (true_or_false, "maybe")])
def test_a_reference_that_is_no_answer_is_an_error_of_the_file(score, reference):
    with pytest.raises(SettingsError, match=rf"leval: '{reference}' is no answer"):
        score("A", reference)


LINE = {"input": "a {question} b", "instructions": ["q1", "q2"], "outputs": ["A", "B"], "evaluation": "exam"}


def test_each_question_of_a_document_is_one(tmp_path):
    (tmp_path / "tpo.jsonl").write_text(json.dumps(LINE | {"source": "s"}) + "\n\n" + json.dumps(LINE))
    found = questions(tmp_path / "tpo.jsonl")
    assert [(each["question"], each["answer"], each["source"]) for each in found] == [
        ("q1", "A", "s"),
        ("q2", "B", "s"),
        ("q1", "A", ""),
        ("q2", "B", ""),
    ]
    config = task("tpo", tmp_path)
    assert config["doc_to_text"](found[0]).startswith("a {question} b\n\nq1\n")  # braces in a document are text
    assert config["process_results"](found[0], ["A."]) == {"exact_match": 1.0}


@pytest.mark.parametrize("name", EXAMS)
def test_a_task_names_the_scores_that_it_gives(name, tmp_path):
    reference = {"gsm100": "1", "sci_fi": "True [fact: True]"}.get(name, "A")
    scores = EXAMS[name].score("", reference)
    assert tuple(scores) == EXAMS[name].metrics == tuple(each["metric"] for each in task(name, tmp_path)["metric_list"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"line 1: is none of L-Eval's \(JSONDecodeError"),
        ("[]", r"line 1: is none of L-Eval's \(TypeError"),
        ("9" * 5_000, r"line 1: is none of L-Eval's \(ValueError"),
        (json.dumps(LINE | {"outputs": ["A"]}), r"line 1: is none of L-Eval's \(ValueError"),
        (json.dumps({"input": ""}), r"line 1: is none of L-Eval's \(KeyError"),
        (json.dumps(LINE | {"evaluation": "human"}), "line 1: evaluation is 'human', wanted exam"),
        ("", "holds no question"),
        ("[" * 100_000, r"line 1: is none of L-Eval's \(RecursionError"),
        (json.dumps(LINE | {"input": 3}), r"line 1: .*\(TypeError: input, instructions and outputs must be texts\)"),
        (json.dumps(LINE | {"outputs": ["A", None]}), r"line 1: .*must be texts"),
    ],
)
def test_a_line_of_another_kind_is_named(tmp_path, text, message):
    (tmp_path / "tpo.jsonl").write_text(text)
    with pytest.raises(SettingsError, match=message):
        questions(tmp_path / "tpo.jsonl")


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\u001c", "\x0b", "\x0c"])
def test_signs_that_end_a_line_elsewhere_stand_in_a_document(tmp_path, sign):
    line = json.dumps(LINE | {"input": f"one{sign}two"}, ensure_ascii=False)
    (tmp_path / "tpo.jsonl").write_text(f"\ufeff{line}\r\n{line}", encoding="utf-8")
    assert {each["document"] for each in questions(tmp_path / "tpo.jsonl")} == {f"one{sign}two"}


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"tpo\.jsonl cannot be read: No such file"):
        questions(tmp_path / "tpo.jsonl")
