"""Compare methods and baselines on one base model; the same command goes on with what is missing.

ray job submit --working-dir . -- python jobs/compare.py --config my.yaml
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a source tree too

from e2ray.cli import job

if __name__ == "__main__":
    sys.exit(job("compare"))
