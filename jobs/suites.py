"""Ask a trained run the tasks of published suites that its recipe names, the base beside the tuned model.

ray job submit --working-dir . -- python jobs/suites.py --config jobs/recipes/demo-cpu.yaml
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a source tree too

from e2ray.cli import job

if __name__ == "__main__":
    sys.exit(job("suites"))
