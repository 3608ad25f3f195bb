"""Make the Arrow shards of a recipe.

ray job submit --working-dir . -- python jobs/prepare.py --config jobs/recipes/demo-cpu.yaml
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a source tree too

from e2ray.cli import job

if __name__ == "__main__":
    sys.exit(job("prepare"))
