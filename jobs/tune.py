"""Search settings of a recipe; with `--resume` the same command continues a study that was cut off.

ray job submit --working-dir . -- python jobs/tune.py --config jobs/recipes/search-cpu.yaml --resume
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a source tree too

from e2ray.cli import job

if __name__ == "__main__":
    sys.exit(job("tune"))
