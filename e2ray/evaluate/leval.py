"""L-Eval's closed-ended tasks from the user's own copy of its files, scored strictly.

Each line of a file is one long document (`input`) with questions (`instructions`) and their answers (`outputs`);
`evaluation` is `exam` where answers are compared, not judged. Neither texts nor code are L-Eval's: the questions are
framed in our own words, so scores compare with each other and with no published table. Two rules are stricter than
L-Eval's: an answer without a letter is wrong where L-Eval takes it for A, and a reference must be in an answer as whole
words. Of sci_fi only the half of the questions about the document is asked, not the half about the real world.

Source: L-Eval (arXiv:2307.11088), formats and scoring of OpenLMLab/LEval.
"""

import itertools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from e2ray.config.base import SettingsError
from e2ray.evaluate.scorers import best_of
from e2ray.optional import library

LETTERS = "ABCD"
JOINS = {*",&/-()[]*\"'", "and", "or"}
ANSWER = re.compile(r"\b(?i:answers?(?:\s+(?:is|are))?)(?:\s*:\s*|\s+)(?=[(\[*\"']*(?:[A-D]\b|[A-D]{2,4}\b))")
NUMBER = re.compile(r"(?<![\w.])-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w|[/.,]\d)")

Scores = dict[str, float]


@dataclass(frozen=True)
class Exam:
    """One task: how a question is put and how an answer is scored.

    Attributes:
        prompt: Template with {document} and {question}.
        score: Takes what the model wrote and the reference, returns scores by name.
        answer_tokens: Most tokens of an answer.
        until: Texts that end an answer.
        metrics: Names of its scores.
    """

    prompt: str
    score: Callable[[str, str], Scores]
    answer_tokens: int
    until: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("exact_match",)


def chosen(text: str) -> frozenset[str]:
    """Return the letters A to D that an answer names; none where it does not clearly name an option.

    They are at the start of the answer or after "answer is" or "answer:", apart from other words: "A good one" and
    "Because" name none, "(B)", "B. The moon" and "A, C and D" do.
    """
    match = ANSWER.search(text)
    lines = (text[match.end() :] if match else text).strip().splitlines()
    named: list[str] = []
    before = ""
    for token in re.findall(r"[^\W_]+|\S", lines[0] if lines else ""):
        letters = set(token) <= set(LETTERS) and len(set(token)) == len(token)
        if letters:
            named += token
        elif token not in JOINS:
            alone = not token[0].isalnum() or not before.isalnum()  # else a letter that is part of a sentence
            return frozenset(named) if alone else frozenset()
        before = token
    return frozenset(named)


def one_choice(text: str, reference: str) -> Scores:
    """Return whether an answer names exactly the right letter."""
    return {"exact_match": float(chosen(text) == set(_letters(reference)))}


def all_choices(text: str, reference: str) -> Scores:
    """Return whether an answer names exactly the right letters, and L-Eval's score: 0.25 for some and no wrong one."""
    named, right = chosen(text), set(_letters(reference))
    exact = float(named == right)
    return {"exact_match": exact, "with_partial": 0.25 if named and named < right else exact}


def _letters(reference: str) -> str:
    letters = reference.split()[0].strip(".)(") if reference.split() else ""
    if not letters or not set(letters) <= set(LETTERS):
        raise SettingsError(f"leval: {reference!r} is no answer of a multiple-choice question, wanted letters A to D")
    return letters


def same_number(text: str, reference: str) -> Scores:
    """Return whether the number after the first "The answer is", else the first paragraph's last, is right."""
    phrase = re.search(r"the answer is[^\w$-]*", text, re.IGNORECASE)
    if phrase:
        match = NUMBER.match(text, phrase.end())
        numbers = [match] if match else []
    else:
        numbers = list(NUMBER.finditer(text.strip().split("\n\n")[0]))[-1:]
    right = _number(NUMBER.search(reference))
    if right is None:
        raise SettingsError(f"leval: {reference!r} is no answer of a question for a number")
    return {"exact_match": float(bool(numbers) and _number(numbers[0]) == right)}


def _number(match: re.Match[str] | None) -> Decimal | None:
    if match is None:
        return None
    try:
        return Decimal(match.group().replace(",", "").replace("$", ""))
    except InvalidOperation:
        return None


def first_line_holds(text: str, reference: str) -> Scores:
    """Return whether the first line of more than one character holds the reference as whole words."""
    line = next((line for line in text.splitlines() if len(line.strip()) > 1), "")
    return {"exact_match": best_of(line, [reference])}


def output_of_code(text: str, reference: str) -> Scores:
    """Return whether the words after "the final output", else the last ones, hold what the code prints.

    As in L-Eval, three words more than the reference has are compared, and signs without meaning are dropped.
    """
    answer, expected = _plain(text), _plain(reference)
    size = len(expected.split()) + 3
    _, named, behind = answer.lower().rpartition("the final output")
    words = behind.split()[:size] if named else behind.split()[-size:]
    return {"exact_match": best_of(" ".join(words), [expected])}


def _plain(text: str) -> str:
    bare = re.sub(r"[,'\\\"]", "", " ".join(text.split()))
    bare = re.sub(r"(?<=\d)\.0\b", "", bare)
    bare = re.sub(r"\b(will be|of the code|is|would be|the value of|the result of|printed)\b", "", bare)
    bare = re.sub(r"([\[\]]) (?=[\[\]])", r"\1", bare)
    return " ".join(bare.split()).rstrip(".")


def true_or_false(text: str, reference: str) -> Scores:
    """Return whether the answer begins with the right one of true and false, without regard to the real world."""
    right = reference.lower().split("[fact:")[0].strip().rstrip(".")
    if right not in ("true", "false"):
        raise SettingsError(f"leval: {reference!r} is no answer of a question for true or false")
    match = re.match(r"\W*(true|false)\b(?!\s*(?:or|/|and)\b)", text, re.IGNORECASE)
    return {"exact_match": float(match is not None and match.group(1).lower() == right)}


_ASKED = "{document}\n\n{question}\n"
EXAMS = {
    "coursera": Exam(
        _ASKED + "Name the letters of all right options, nothing else.\nAnswer:",
        all_choices,
        16,
        metrics=("exact_match", "with_partial"),
    ),
    "quality": Exam(_ASKED + "Name the letter of the right option, nothing else.\nAnswer:", one_choice, 16),
    "tpo": Exam(_ASKED + "Name the letter of the right option, nothing else.\nAnswer:", one_choice, 16),
    "gsm100": Exam("{document}\n\n{question}", same_number, 512, ("\nQuestion:",)),
    "topic_retrieval_longchat": Exam(_ASKED + "Answer:", first_line_holds, 64),
    "codeU": Exam(_ASKED + "Answer:", output_of_code, 256),
    "sci_fi": Exam(_ASKED + "Answer True or False.\nAnswer:", true_or_false, 16),
}


def questions(path: Path) -> list[dict[str, str]]:
    """Return every question of a file with its document and its answer.

    Raises:
        SettingsError: If the file is missing or a line is not in L-Eval's form.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines cuts at signs that texts hold
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"leval: {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    examples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            document, asked, answers = item["input"], item["instructions"], item["outputs"]
            rows = list(zip(asked, answers, strict=True))
            kind = item["evaluation"]
            if not all(isinstance(text, str) for text in (document, *itertools.chain(*rows))):
                raise TypeError("input, instructions and outputs must be texts")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SettingsError(
                f"leval: {path} line {number}: is none of L-Eval's ({type(error).__name__}: {error}); wanted input, "
                "evaluation, instructions and as many outputs"
            ) from None
        if kind != "exam":
            raise SettingsError(f"leval: {path} line {number}: evaluation is {kind!r}, wanted exam")
        source = str(item.get("source", ""))
        examples += [{"document": document, "question": q, "answer": a, "source": source} for q, a in rows]
    if not examples:
        raise SettingsError(f"leval: {path} holds no question")
    return examples


def task(name: str, folder: Path) -> dict[str, object]:
    """Return the harness's config of one task: `name` of EXAMS, its file in `folder`."""
    exam = EXAMS[name]

    def documents(**_: object) -> dict[str, object]:
        return {"test": library("datasets").Dataset.from_list(questions(folder / f"{name}.jsonl"))}

    def prompt(document: Mapping[str, str]) -> str:
        return exam.prompt.replace("{question}", document["question"]).replace("{document}", document["document"], 1)

    return {
        "task": f"leval:{name}",
        "custom_dataset": documents,
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": prompt,
        "doc_to_target": lambda document: document["answer"],
        "process_results": lambda document, answers: exam.score(answers[0], document["answer"]),
        "metric_list": [{"metric": each, "aggregation": "mean", "higher_is_better": True} for each in exam.metrics],
        "generation_kwargs": {"until": list(exam.until), "do_sample": False, "max_gen_toks": exam.answer_tokens},
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
    }
