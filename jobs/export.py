"""Write a trained run as a Hugging Face folder with a serving profile per context length.

ray job submit --working-dir . -- python jobs/export.py --config jobs/recipes/demo-cpu.yaml
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a source tree too

from e2ray.cli import job

if __name__ == "__main__":
    sys.exit(job("export"))
