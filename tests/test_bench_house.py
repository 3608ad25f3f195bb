"""What the benchmark of tests and first run makes of what two commits took, on figures made up by hand."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "jobs"))

from bench_house import goals_of, size_of, test_counts
from benchmarking import observed

test_counts.__test__ = False


def took(test_s, train_s, **changes):
    return {
        "test_s": test_s, "train_s": train_s, "test_exit_code": 0, "train_exit_code": 0, "train_peak_mib": 3000.0,
        "readme_lines": 170, "package_lines": 30_000, "any_per_1000_lines": 7.0,
    } | changes  # fmt: skip


OLD = [took(800, 480, package_lines=31_000, any_per_1000_lines=20.0), took(820, 470, package_lines=31_000)]


def missed(new):
    return [each["name"].split(",")[0] for each in goals_of(OLD, new) if not each["met"]]


def test_quick_small_and_lean_meets_every_goal():
    assert missed([took(400, 220), took(410, 230)]) == []


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"test_s": 440}, ["make test: median of seconds"]),
        ({"test_s": 460}, ["make test: ratio of medians", "make test: median of seconds"]),
        ({"train_s": 250}, ["make train: median of seconds"]),
        ({"train_peak_mib": 3100.0}, ["make train: peak memory of all processes"]),
        ({"test_exit_code": 1}, ["runs of both commits that ended with an exit code other than 0"]),
        ({"readme_lines": 181}, ["lines of README.md"]),
        ({"package_lines": 31_001}, ["lines of e2ray"]),
    ],
)
def test_each_goal_is_missed_by_its_own_figure(changes, names):
    assert missed([took(400, 220) | changes] * 2) == names


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ("==== 2224 passed, 3 skipped in 797.31s (0:13:17) ====", {"passed": 2224, "skipped": 3}),
        ("1 failed, 957 passed in 387.90s (0:06:27)", {"failed": 1, "passed": 957}),
        ("make: *** No rule", {}),
    ],
)
def test_tests_are_counted_from_pytests_last_line(line, counts):
    assert test_counts(f"collecting ...\n{line}\nmake: leaving") == counts


def test_the_size_of_a_checkout_counts_names_and_not_words(tmp_path):
    (tmp_path / "README.md").write_text("# one\n\ntwo\n")
    (tmp_path / "e2ray").mkdir()
    (tmp_path / "e2ray" / "a.py").write_text('"""Any text."""\n\nfrom typing import Any\n\nx: Any = "Any"\n')
    assert size_of(tmp_path) == {"readme_lines": 3, "package_lines": 5, "any_per_1000_lines": 400.0}


def test_a_command_is_watched_to_its_end(tmp_path):
    program = "import sys; x = bytearray(80 * 2**20); import time; time.sleep(1); print('said'); sys.exit(3)"
    seconds, peak, code = observed([sys.executable, "-c", program], folder=tmp_path, log=tmp_path / "log", every_s=0.1)
    assert (code, (tmp_path / "log").read_text()) == (3, "said\n")
    assert seconds >= 1 and peak >= 80
